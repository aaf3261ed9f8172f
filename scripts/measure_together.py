"""Two objects painted at once and one after the other, in the small world: identity by region, what of one's colours
gets into the other, seam and time; with a picture.

python scripts/measure_together.py --cases 40 --out docs/together.jpg"""

from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.util import shipped


@command
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--cases", type=int, default=40, help="photos with two regions each (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/together.jpg"), help="the picture (%(default)s)")
    parser.add_argument("--config", default=shipped("configs/mini/paint_by_example.yaml"), help="of the model")
    parser.add_argument("--ckpt", default=shipped("pretrained_models/mini.safetensors"), help="of the model")
    parser.add_argument("--oracle", type=Path, default=shipped("pretrained_models/mini_oracle.safetensors"))
    opt = parser.parse_args()
    check_range(opt, "cases", 2, 10_000)

    from ldm.images import grid
    from ldm.miniworld.scores import load_oracle
    from ldm.miniworld.several import COLUMNS, draw_case, measure
    from ldm.pipeline import PaintByExample

    edit = PaintByExample.load(opt.config, opt.ckpt)
    cases = [draw_case(number) for number in range(opt.cases)]
    columns = [[case.outlined() for case in cases], *([each.references[i] for each in cases] for i in range(2))]
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for way in measure(edit, load_oracle(opt.oracle, edit.device), cases):
        cells = (f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in way.scores.values())
        print(f"| {way.name} | {' | '.join(cells)} |", flush=True)
        columns.append(list(way.pictures))
    shown = min(6, opt.cases)
    cells = [column[i].resize((128, 128)) for i in range(shown) for column in columns]
    opt.out.parent.mkdir(parents=True, exist_ok=True)
    grid(cells, shown).save(opt.out, quality=88)
    print(f"wrote {opt.out}")


if __name__ == "__main__":
    main()
