"""The small world's table: what its parts can do, and how the miniature model's edits score.

    python scripts/mini_table.py                                   # the model that ships, in minutes
    python scripts/mini_table.py --scales 1 2 3 5 7.5 10           # guidance

Draws the benchmark if it is not there (test_bench_mini), edits its 600 cases at each scale (0: the learned vector
instead of the reference, the floor), and prints the table; writes <outdir>/<name>.json, <name>.png, the edits, and
<name>-failures.png, of the last scale: edits in which the oracle sees another shape than the reference's. What is there
already is not made again.

    python scripts/mini_table.py --show A.json B.json --name both  # rows of several such files

prints them, and of more than one file writes both.json and, where the edits still lie beside the files, both.png.

    python scripts/mini_table.py --presets                         # fewer steps, beside 50 of PLMS at scale 5

writes <outdir>/presets.json, presets.jpg and the edits; --student adds the rows of a distilled model, at scale 1."""

import argparse
from pathlib import Path

from ldm.cli.command import command
from ldm.files import staging
from ldm.util import UserError

ROOT = Path(__file__).resolve().parent.parent


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", default=ROOT / "configs/mini/paint_by_example.yaml")
    p.add_argument("--ckpt", default=ROOT / "pretrained_models/mini.safetensors")
    p.add_argument("--clip", type=Path, default=ROOT / "pretrained_models/mini_clip.safetensors")
    p.add_argument("--clip_config", type=Path, default=ROOT / "configs/mini/clip.json", help="open_clip's, of --clip")
    p.add_argument("--oracle", type=Path, default=ROOT / "pretrained_models/mini_oracle.safetensors")
    p.add_argument("--bench", type=Path, default=Path("test_bench_mini"), help="(%(default)s)")
    p.add_argument("--cases", type=int, help="the first so many of its cases (all)")
    p.add_argument("--outdir", type=Path, default=Path("results/mini"), help="(%(default)s)")
    p.add_argument("--name", default="mini", help="of the model's rows (%(default)s)")
    p.add_argument("--scales", type=float, nargs="+", default=[0.0, 5.0], help="of guidance (0 5)")
    p.add_argument("--steps", type=int, default=25, help="of PLMS (25)")
    p.add_argument("--seed", type=int, default=321, help="(321)")
    p.add_argument("--batch_size", type=int, default=50, help="pictures at once (50)")
    p.add_argument("--show", type=Path, nargs="+", metavar="JSON", help="rows that were written before, and end")
    p.add_argument("--presets", action="store_true", help="ways to sample, compared case by case, and end")
    p.add_argument("--student", type=Path, help="with --presets: a model that distillation made of --ckpt")
    p.add_argument("--bare", action="store_true", help="the model's rows alone, not those it is compared with")
    p.add_argument("--precision", help="full, bf16, fp16 or autocast (default: autocast on CUDA, else full)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest there is)")
    opt = p.parse_args()
    if not 1 <= opt.batch_size <= 1000:
        raise UserError(f"--batch_size {opt.batch_size} is out of range; use 1 to 1000")
    if opt.cases is not None and opt.cases < 2:
        raise UserError(f"--cases {opt.cases} is out of range; use 2 or more")
    if opt.show:
        show(opt.show, opt.bench, opt.outdir, opt.name)
        return

    from ldm.batch.benchmark import benchmark_settings, contact_sheet
    from ldm.data.bench.cocoee import COCOImageDataset
    from ldm.editing.options import Sampling, check_seed
    from ldm.evaluation.features import load_clip, load_oracle
    from ldm.evaluation.folder import real_statistics
    from ldm.miniworld import table as mini_table
    from ldm.miniworld.write import write_bench
    from ldm.pipeline import PaintByExample
    from ldm.util import load_config

    check_seed(opt.seed)
    samplings = [Sampling(scale=scale, steps=opt.steps) for scale in opt.scales]
    config = load_config(opt.config)
    clip = mini_table.read_clip(opt.clip_config, opt.clip)
    edit = PaintByExample.load(config, opt.ckpt, opt.device, opt.precision)
    extractors = {
        "clip": load_clip(opt.clip, edit.device, str(opt.clip_config)),
        "oracle": load_oracle(opt.oracle, edit.device),
    }
    if not opt.bench.exists():
        write_bench(opt.bench)
    bench = COCOImageDataset(opt.bench)
    bench.ids = bench.ids[: opt.cases]
    mini_table.require_identities(bench)
    real = real_statistics(opt.bench / "test2017_square", extractors["clip"], 50)

    if opt.presets:
        compare(opt, config, edit, bench, extractors, real)
        return

    rows, folders, failures = {}, [], []
    if not opt.bare:
        shape, pattern = mini_table.zero_shot_accuracy(clip, bench)
        ceiling = mini_table.oracle_on_real(extractors["oracle"], bench)
        print(f"autoencoder, the benchmark's photos: {mini_table.reconstruction_psnr(edit.model, bench):.1f} dB")
        print(f"CLIP, its references, zero-shot: shape {shape:.1%}, pattern {pattern:.1%}")
        told = "shape {shape:.1%}, pattern {pattern:.1%}, colour error {colour_error:.1f}".format(**ceiling)
        print(f"oracle, the references' own objects: {told}")
        for name, make in (("photo, unedited", mini_table.unedited), ("reference, pasted", mini_table.pasted)):
            folder = opt.outdir / name.replace(", ", "-")
            make(bench, folder)
            rows[name], *_ = mini_table.scored(folder, bench, extractors, real)
    for scale, sampling in zip(opt.scales, samplings, strict=True):
        outdir = opt.outdir / f"{opt.name}-scale-{scale:g}"
        settings = benchmark_settings(config, opt.ckpt, bench, edit.precision, opt.seed, sampling)
        mini_table.edited(edit, bench, outdir, settings, sampling, opt.batch_size)
        label = f"{opt.name}, v for c" if scale == 0 else f"{opt.name}, scale {scale:g}"
        rows[label], cases, _ = mini_table.scored(outdir / "results", bench, extractors, real)
        failures = [i for i, case in enumerate(cases) if not case["shape"]]
        folders.append(outdir / "results")
    mini_table.write_rows(opt.outdir / f"{opt.name}.json", rows)
    with staging(opt.outdir) as temporary:
        contact_sheet(bench, folders, range(min(12, len(bench)))).save(temporary / f"{opt.name}.png")
        if failures:
            contact_sheet(bench, folders[-1:], failures[:12]).save(temporary / f"{opt.name}-failures.png")
    print(mini_table.table(rows))
    print(f"wrote {opt.outdir / f'{opt.name}.json'}, pictures beside it")


def compare(opt: argparse.Namespace, config, edit, bench, extractors, real) -> None:
    """The candidates of mini_presets, edited, scored, and compared with the first."""
    from ldm.batch.benchmark import benchmark_settings, contact_sheet
    from ldm.editing.options import Sampling
    from ldm.miniworld import presets as mini_presets
    from ldm.miniworld import table as mini_table
    from ldm.pipeline import PaintByExample

    models = {"": (edit, opt.ckpt, mini_presets.CANDIDATES, 5.0)}
    if opt.student:
        student = PaintByExample.load(config, opt.student, opt.device, opt.precision)
        models["distilled, "] = (student, opt.student, mini_presets.OF_STUDENT, 1.0)
    rows, reference = {}, None
    for prefix, (model, ckpt, candidates, scale) in models.items():
        for name, preset in candidates.items():
            label = prefix + name
            sampling = Sampling(scale, preset.sampler, preset.steps, 0.0, preset.interval, preset.refresh)
            seed = opt.seed + (name == mini_presets.ANOTHER_SEED)
            outdir = opt.outdir / "presets" / label.replace(", ", "-").replace(" ", "-")
            settings = benchmark_settings(config, ckpt, bench, edit.precision, seed, sampling)
            mini_table.edited(model, bench, outdir, settings, sampling, opt.batch_size)
            scored = mini_table.scored(outdir / "results", bench, extractors, real)
            reference = reference or scored
            count = mini_presets.evaluations(preset, scale, edit.model.schedule)
            kept = {
                name: settings[name] for name in ("scale", "sampler", "steps", "interval", "refresh", "eta", "seed")
            }
            rows[label] = scored.row | {"evaluations": count, "sampling": kept}
            if scored is not reference:
                rows[label]["difference"] = mini_presets.differences(scored, reference)
    mini_table.write_rows(opt.outdir / "presets.json", rows)
    shown = [row["results"] for label, row in rows.items() if label in mini_presets.SHOWN]
    with staging(opt.outdir) as temporary:
        pictures = contact_sheet(bench, shown, range(min(8, len(bench))))
        pictures.save(temporary / "presets.jpg", quality=85)
    print(mini_presets.table(rows))
    print(f"wrote {opt.outdir / 'presets.json'}, pictures beside it")


def show(files: list[Path], bench: Path, outdir: Path, name: str) -> None:
    """Prints the rows of files; of more than one, writes them together, and their edits side by side."""
    from ldm.batch.benchmark import contact_sheet
    from ldm.data.bench.cocoee import COCOImageDataset
    from ldm.miniworld.presets import table as table_of_presets
    from ldm.miniworld.table import read_rows, table, write_rows

    rows = {label: row for path in files for label, row in read_rows(path).items()}
    compared = any("difference" in row for row in rows.values())
    print(table_of_presets(rows) if compared else table(rows))
    if len(files) > 1:
        write_rows(outdir / f"{name}.json", rows)
        folders = [row["results"] for row in rows.values()]
        if bench.is_dir() and all(folder.is_dir() for folder in folders):
            cases = COCOImageDataset(bench)
            with staging(outdir) as temporary:
                contact_sheet(cases, folders, range(min(12, len(cases)))).save(temporary / f"{name}.png")


if __name__ == "__main__":
    main()
