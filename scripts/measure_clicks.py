"""How well a click or a box finds the objects of the small world's test scenes: IoU with their true outlines.

python scripts/measure_clicks.py
python scripts/measure_clicks.py --segment hub"""

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range


@command
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="of 2 or 3 objects each (%(default)s)")
    parser.add_argument("--segment", metavar="FOLDER", help="grabcut, hub, or the folder of a SAM 2 (grabcut)")
    opt = parser.parse_args()
    check_range(opt, "scenes", high=10_000)

    from ldm.miniworld.outlines import measure

    print("| from | mean IoU | median | above 0.8 |\n|---|---|---|---|")
    for name, scores in measure(opt.scenes, opt.segment):
        median, good = sorted(scores)[len(scores) // 2], (scores > 0.8).mean()
        print(f"| {name} | {scores.mean():.3f} | {median:.3f} | {good:.0%} |", flush=True)
    print(f"{len(scores)} objects")


if __name__ == "__main__":
    main()
