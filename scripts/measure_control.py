"""How well edits follow a control, in the small world: trains a T2I-Adapter of outlines for the miniature, and compares
the outlines of edits with those that were asked for; a table and a picture.

python scripts/measure_control.py --minutes 12 --out results/control

An adapter that is in --out already is trained further; --minutes 0 measures it as it is."""

from dataclasses import replace
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.util import shipped

SHOWN = 5  # cases in the picture


@command
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="of training, beside encoding (%(default)s)")
    parser.add_argument("--samples", type=int, default=6000, help="to train on (%(default)s)")
    parser.add_argument("--cases", type=int, default=80, help="edits to measure (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/control"), help="folder (%(default)s)")
    parser.add_argument("--config", default=shipped("configs/mini/paint_by_example.yaml"), help="of the model")
    parser.add_argument("--ckpt", default=shipped("pretrained_models/mini.safetensors"), help="of the model")
    parser.add_argument("--oracle", type=Path, default=shipped("pretrained_models/mini_oracle.safetensors"))
    opt = parser.parse_args()
    check_range(opt, "minutes", 0, 10_000)
    check_range(opt, "samples", 1, 1_000_000)
    check_range(opt, "cases", 2, 10_000)

    from diffusers import T2IAdapter

    from ldm.checkpoint import load_model
    from ldm.cli.show_samples import titled
    from ldm.evaluation.benchmark import mean_interval
    from ldm.files import staging
    from ldm.images import grid
    from ldm.miniworld import control
    from ldm.miniworld.neighbours import draw_case
    from ldm.miniworld.scores import load_oracle
    from ldm.pipeline import PaintByExample

    adapter = opt.out / "adapter"
    if opt.minutes:
        model = load_model(opt.config, opt.ckpt)
        network = T2IAdapter.from_pretrained(adapter) if adapter.exists() else control.new_adapter(model)
        control.train_adapter(network, model, control.encode_samples(model, opt.samples), opt.minutes)
        with staging(opt.out) as folder:
            network.save_pretrained(folder / "adapter")
    edit = PaintByExample.load(opt.config, opt.ckpt, control=adapter)
    cases = [draw_case(number) for number in range(opt.cases)]
    columns = [("photo", [case.photo for case in cases]), ("reference", [case.reference for case in cases])]
    oracle = load_oracle(opt.oracle, edit.device)
    for title, outline_of in control.CONTROLS.items():
        wanted = [replace(case, outline=outline_of(case)) for case in cases]
        columns.append((title, [control.lines(case.outline) for case in wanted]))
        for way, scores, pictures in control.measure(edit, oracle, wanted):
            if way == "plain":
                names = list(scores)
                print(f"| {title} | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
            intervals = [(values.mean(), *mean_interval(values)) for values in scores.values()]
            cells = [f"{mean:.3g} ± {(high - low) / 2:.2g}" for mean, low, high in intervals]
            print(f"| {way} | {' | '.join(cells)} |", flush=True)
            if way == f"`--control_scale {control.SCALES[-1]:g}`" or (way == "plain" and len(columns) == 3):
                columns.append((way.strip("`"), pictures))
    shown = min(SHOWN, opt.cases)
    tiles = [
        titled(pictures[i].convert("RGB"), title if i == 0 else "").resize((192, 204))
        for i in range(shown)
        for title, pictures in columns
    ]
    with staging(opt.out) as folder:
        grid(tiles, rows=shown).save(folder / "control.jpg", quality=85)
    plain, controlled = (control.seconds(edit, wanted[:10], scale) for scale in (0, 1))
    print(f"{opt.cases} cases; an edit takes {plain:.2f} s, with control {controlled:.2f} s; wrote {opt.out}")


if __name__ == "__main__":
    main()
