"""How well neighbouring methods do what they are for, in the small world, where outlines and identities are known.

python scripts/measure_methods.py layout     keep the layout: IoU of the new object's outline with the old one's
python scripts/measure_methods.py outline    find the outline: IoU with the true one
python scripts/measure_methods.py which      ask the model: shape and pattern of the reference that is chosen
python scripts/measure_methods.py direction  from a to b: whether an attribute moves and the rest stays
python scripts/measure_methods.py windows    regions larger than the model's window: identity, detail, time
python scripts/measure_methods.py learn      learn an object: identity by a token or an adapter, and by the mean token

Prints a table with half of the 95% interval beside each mean, and writes <outdir>/<method>.jpg."""

from pathlib import Path
from typing import Any

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.util import shipped

SHOWN = 6  # cases in the picture


@command
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("method", choices=("layout", "outline", "which", "direction", "windows", "learn"))
    parser.add_argument("--cases", type=int, default=100, help="for learn, objects (%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="of DDIM, for layout and direction (%(default)s)")
    parser.add_argument("--draws", type=int, default=32, help="of noise, for which (%(default)s)")
    parser.add_argument("--learning_steps", type=int, default=200, help="for learn (%(default)s)")
    parser.add_argument("--ways", nargs="+", help="for layout, learn: only rows with one of these words in their names")
    parser.add_argument("--outdir", type=Path, default=Path("results/methods"), help="(%(default)s)")
    opt = parser.parse_args()
    check_range(opt, "cases", 2, 10_000)

    from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
    from ldm.cli.learn_object import RATES
    from ldm.cli.show_samples import titled
    from ldm.editing.options import Sampling
    from ldm.evaluation.benchmark import mean_interval
    from ldm.evaluation.features import load_clip
    from ldm.files import staging
    from ldm.images import grid
    from ldm.miniworld import directions, large, learned, neighbours
    from ldm.miniworld.scores import load_oracle
    from ldm.pipeline import PaintByExample

    edit = PaintByExample.load(MINI_CONFIG, MINI_CKPT, precision="autocast" if opt.method == "learn" else None)
    oracle = load_oracle(shipped("pretrained_models/mini_oracle.safetensors"), edit.device)

    def chosen(ways: dict[str, Any]) -> dict[str, Any]:
        return {name: way for name, way in ways.items() if any(word in name for word in opt.ways or [""])}

    if opt.method == "learn":
        things = [learned.draw_thing(number) for number in range(opt.cases)]
        rows = learned.measure_learned(edit, oracle, things, chosen(learned.WAYS), opt.learning_steps, RATES)
        columns = {"photo": [each.cases[0].photo for each in things]}
        columns |= {f"picture {i + 1}": [each.shown(i) for each in things] for i in (0, 1)}
    elif opt.method == "direction":
        directed = [directions.draw_directed(number) for number in range(opt.cases)]
        rows = directions.measure_directions(edit, oracle, directed, Sampling(sampler="ddim", steps=opt.steps))
        columns = {"photo": [case.photo for case in directed]}
        columns |= {name: [case.pictures[name] for case in directed] for name in ("c", "a", "b")}
    else:
        times = large.TIMES if opt.method == "windows" else 1
        cases = [neighbours.draw_case(number, times) for number in range(opt.cases)]
        columns = {"photo": [case.photo for case in cases]}
        if opt.method == "which":
            columns["region"] = [case.photo.crop(case.box) for case in cases]
        else:
            columns["reference"] = [case.reference for case in cases]
    if opt.method == "layout":
        rows = neighbours.measure_layout(edit, oracle, cases, chosen(neighbours.layouts(opt.steps)))
    elif opt.method == "windows":
        rows = large.measure_windows(edit, oracle, cases)
    elif opt.method == "outline":
        rows = neighbours.measure_outline(edit, cases)
    elif opt.method == "which":
        clip = shipped("pretrained_models/mini_clip.safetensors")
        rows = neighbours.measure_which(
            edit, load_clip(clip, edit.device, str(shipped("configs/mini/clip.json"))), cases, opt.draws
        )
    for number, (name, scores, pictures) in enumerate(rows):
        if number == 0:
            print(f"| | {' | '.join(scores)} |\n{'|---' * (len(scores) + 1)}|")
        intervals = [(values.mean(), *mean_interval(values)) for values in scores.values()]
        cells = [f"{mean:.3g} ± {(high - low) / 2:.2g}" for mean, low, high in intervals]
        few = f" ({len(pictures)} cases)" if len(pictures) < opt.cases else ""
        print(f"| {name}{few} | {' | '.join(cells)} |", flush=True)
        columns[name.replace("`", "").removeprefix("--keep_layout ")] = pictures
    tiles, shown = [], min(SHOWN, opt.cases)
    for i in range(shown):
        for name, pictures in columns.items():
            tiles.append(titled(pictures[i].convert("RGB"), name if i == 0 else "", side=136))
    with staging(opt.outdir) as folder:
        grid(tiles, rows=shown).save(folder / f"{opt.method}.jpg", quality=82)
    print(f"{opt.cases} cases; wrote {opt.outdir / f'{opt.method}.jpg'}")


if __name__ == "__main__":
    main()
