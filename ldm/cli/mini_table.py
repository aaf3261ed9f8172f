"""Score a miniature model: its parts by themselves, and its edits on the small world's benchmark.

    paint-by-example mini-table                                   # the model that ships, in minutes
    paint-by-example mini-table --scales 1 2 3 5 7.5 10           # several guidance scales
    paint-by-example mini-table --show A.json B.json --name both  # rows of earlier runs
    paint-by-example mini-table --presets                         # fewer steps, compared with 50 of PLMS at scale 5
    paint-by-example mini-table --solvers --cases 100             # where a scale makes a sampler unstable
    paint-by-example mini-table --bench test_bench_individuals    # how often an edit shows the reference's individual

Draws the benchmark (test_bench_mini) if it is missing, edits its 600 cases at each scale, and prints the table. Scale 0
uses the learned vector instead of the reference; its scores are the floor. Writes the edits, <outdir>/<name>.json,
<name>.png, and <name>-failures.png: edits at the last scale in which the oracle sees another shape than the
reference's, or the recogniser another individual. Existing edits are kept.

For a benchmark of individuals (make-miniworld --individuals), the table has top-1 of 50 in place of shape, pattern and
colours: how often the recogniser finds the reference's individual in the region, among 50 look-alikes.

--show prints the rows of such JSON files. From several files it also writes both.json; both.svg, likeness against
realism; and, if the edits still exist, both.png.

--presets writes <outdir>/presets.json, presets.jpg and the edits; --student adds the rows of a distilled model, at
scale 1. --solvers writes <outdir>/solvers.json, the colour error over samplers, steps and scales.
scripts/mini_table.py is the same command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.files import staging
from ldm.util import UserError, shipped

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ldm.editing.options import Sampling
    from ldm.miniworld.table import Judge, Row
    from ldm.pipeline import PaintByExample


BENCH = Path("test_bench_mini")
RECORDED = ("scale", "sampler", "steps", "interval", "refresh", "eta", "seed")  # settings in presets.json


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--config", default=shipped("configs/mini/paint_by_example.yaml"), help="of the model")
    p.add_argument("--ckpt", default=shipped("pretrained_models/mini.safetensors"), help="of the model")
    p.add_argument("--detail", type=Path, help="a detail path of the model, detail.safetensors (none)")
    p.add_argument("--detail_scale", type=float, help="strength of --detail, 0 to 1 (1)")
    p.add_argument("--clip", type=Path, default=shipped("pretrained_models/mini_clip.safetensors"), help="weights")
    p.add_argument("--clip_config", type=Path, default=shipped("configs/mini/clip.json"), help="open_clip's, of --clip")
    p.add_argument("--oracle", type=Path, default=shipped("pretrained_models/mini_oracle.safetensors"), help="weights")
    p.add_argument(
        "--recogniser",
        type=Path,
        default=shipped("pretrained_models/mini_recogniser.safetensors"),
        help="weights, for individuals",
    )
    p.add_argument("--bench", type=Path, default=BENCH, help="folder of the benchmark (%(default)s)")
    p.add_argument("--cases", type=int, help="use only this many of its cases, the first (all)")
    p.add_argument("--outdir", type=Path, default=Path("results/mini"), help="(%(default)s)")
    p.add_argument("--name", default="mini", help="of the model's rows (%(default)s)")
    p.add_argument("--scales", type=float, nargs="+", default=[0.0, 5.0], help="guidance scales, a row each (0 5)")
    p.add_argument("--sampler", default="dpm++", help="plms, ddim, dpm++ or unipc (%(default)s)")
    p.add_argument("--steps", type=int, default=12, help="of the sampler (%(default)s)")
    p.add_argument("--best", type=int, default=1, metavar="N", help="paint the best of N seeds (%(default)s)")
    p.add_argument("--seed", type=int, default=321, help="(%(default)s)")
    p.add_argument("--batch_size", type=int, default=50, help="edits per batch (%(default)s)")
    p.add_argument("--show", type=Path, nargs="+", metavar="JSON", help="print rows of earlier runs, and exit")
    p.add_argument("--presets", action="store_true", help="compare ways to sample, case by case, and exit")
    p.add_argument("--solvers", action="store_true", help="find where scales make samplers unstable, and exit")
    p.add_argument("--student", type=Path, help="with --presets: a model that was distilled from --ckpt")
    p.add_argument("--bare", action="store_true", help="only the model's rows, without those it is compared with")
    p.add_argument("--precision", help="full, bf16, fp16 or autocast (default: autocast on CUDA, else full)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest available)")
    return p


@dataclass(frozen=True)
class Setup:
    """The model and judge that all rows of a table share. samplings: one for each of --scales."""

    config: DictConfig
    edit: PaintByExample
    judge: Judge
    samplings: Sequence[Sampling]


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "batch_size", 1, 1000)
    if opt.cases is not None and opt.cases < 2:
        raise UserError(f"--cases {opt.cases} is out of range: use 2 or more")
    if opt.detail and (opt.presets or opt.solvers):
        raise UserError("--presets and --solvers compare the model without a detail path: leave out --detail")
    if opt.show:
        show(opt.show, opt.bench, opt.outdir, opt.name)
        return
    setup = load(opt)
    if opt.solvers:
        compare_solvers(opt, setup)
    elif opt.presets:
        compare_presets(opt, setup)
    else:
        tabulate(opt, setup)


def load(opt: argparse.Namespace) -> Setup:
    """The model, and the benchmark with what scores it."""
    from ldm.data.bench.cocoee import COCOImageDataset
    from ldm.editing.options import Sampling, check_seed
    from ldm.evaluation.features import load_clip
    from ldm.miniworld.gallery import has_individuals
    from ldm.miniworld.parts import require_labels
    from ldm.miniworld.scores import IdentityScorer, LookalikeScorer, load_oracle, load_recogniser
    from ldm.miniworld.table import Judge
    from ldm.miniworld.write import write_bench
    from ldm.pipeline import PaintByExample
    from ldm.util import load_config

    check_seed(opt.seed)
    how = {"sampler": opt.sampler, "steps": opt.steps, "detail_scale": opt.detail_scale}
    samplings = [Sampling.choose(scale=scale, **how) for scale in opt.scales]
    config = load_config(opt.config)
    edit = PaintByExample.load(config, opt.ckpt, opt.device, opt.precision, detail=opt.detail)
    clip = load_clip(opt.clip, edit.device, str(opt.clip_config))
    if opt.bench == BENCH and not BENCH.exists():
        write_bench(BENCH)
    bench = COCOImageDataset(opt.bench)
    bench.ids = bench.ids[: opt.cases]
    identity: IdentityScorer | LookalikeScorer
    if has_individuals(opt.bench):
        identity = LookalikeScorer(load_recogniser(opt.recogniser, edit.device), opt.bench)
    else:
        identity = IdentityScorer(load_oracle(opt.oracle, edit.device), require_labels(bench))
    return Setup(config, edit, Judge(bench, clip, identity), samplings)


def tabulate(opt: argparse.Namespace, setup: Setup) -> None:
    """Prints and writes the model's table."""
    from ldm.batch.benchmark import benchmark_settings, contact_sheet, detail_settings
    from ldm.editing.options import Selection
    from ldm.miniworld.table import edit_missing, table, write_rows

    judge, edit = setup.judge, setup.edit
    bench = judge.bench
    selection = Selection(opt.best)
    rows = {} if opt.bare else baseline_rows(opt, setup)
    folders, failures = [], []
    for scale, sampling in zip(opt.scales, setup.samplings, strict=True):
        outdir = opt.outdir / f"{opt.name}-scale-{scale:g}"
        settings = benchmark_settings(setup.config, opt.ckpt, bench, edit.precision, opt.seed, sampling, selection)
        settings |= detail_settings(opt.detail, opt.detail_scale) if opt.detail else {}
        edit_missing(edit, bench, outdir, settings, sampling, opt.batch_size, selection)
        scored = judge.score(outdir / "results")
        rows[f"{opt.name}, v for c" if scale == 0 else f"{opt.name}, scale {scale:g}"] = scored.row
        failures = [i for i, case in enumerate(scored.cases) if not case.values[judge.identity.keys[0]]]
        folders.append(outdir / "results")
    write_rows(opt.outdir / f"{opt.name}.json", rows)
    with staging(opt.outdir) as temporary:
        contact_sheet(bench, folders, range(min(12, len(bench)))).save(temporary / f"{opt.name}.png")
        if failures:
            contact_sheet(bench, folders[-1:], failures[:12]).save(temporary / f"{opt.name}-failures.png")
    print(table(rows))
    print(f"wrote {opt.outdir / f'{opt.name}.json'}, pictures beside it")


def baseline_rows(opt: argparse.Namespace, setup: Setup) -> dict[str, Row]:
    """Prints what the model's parts can do. -> rows of unedited photos, of pasted references and, if the benchmark has
    them, of perfect edits as drawn and as the autoencoder shows them."""
    from ldm.evaluation.benchmark import mean_interval
    from ldm.miniworld import parts
    from ldm.miniworld.probe import probe_accuracy
    from ldm.miniworld.scores import LookalikeScorer
    from ldm.miniworld.table import write_pasted, write_reconstructed, write_unedited
    from ldm.miniworld.write import PERFECT

    bench, identity = setup.judge.bench, setup.judge.identity
    print(f"autoencoder, the benchmark's photos: {parts.reconstruction_psnr(setup.edit.model, bench):.1f} dB")
    if isinstance(identity, LookalikeScorer):
        right = parts.recogniser_ceiling(identity, bench)
        low, high = mean_interval(right)
        print(f"recogniser, the references' own objects: top-1 of 50 {right.mean():.1%} ({low:.1%} to {high:.1%})")
    else:
        clip = parts.read_clip(opt.clip_config, opt.clip)
        shape, pattern = parts.zero_shot_accuracy(clip, bench)
        print(f"CLIP, its references, zero-shot: shape {shape:.1%}, pattern {pattern:.1%}")
        networks, side = setup.edit.networks, setup.edit.model.cond_stage_model.image_size
        shown, held_out = probe_accuracy(lambda crops: networks.clip_features(crops.to(setup.edit.device)), side)
        shares = f"{shown:.1%} of shown, {held_out:.1%} of held-out pairs"
        print(f"a probe of the shape in the model's CLIP, fitted on shown pairs: {shares}")
        ceiling = parts.oracle_ceiling(identity.extractor, bench)
        answers = "shape {shape:.1%}, pattern {pattern:.1%}, colour error {colour_error:.1f}".format(**ceiling)
        print(f"oracle, the references' own objects: {answers}")
    rows = {}
    for name, write in (("photo, unedited", write_unedited), ("reference, pasted", write_pasted)):
        folder = opt.outdir / name.replace(", ", "-")
        write(bench, folder)
        rows[name] = setup.judge.score(folder).row
    perfect = bench.root / PERFECT
    if perfect.is_dir():
        rows["perfect edit, drawn"] = setup.judge.score(perfect).row
        reconstructed = opt.outdir / "perfect-reconstructed"
        write_reconstructed(setup.edit.model, bench, perfect, reconstructed)
        rows["perfect edit, autoencoder"] = setup.judge.score(reconstructed).row
    return rows


def compare_presets(opt: argparse.Namespace, setup: Setup) -> None:
    """Prints and writes the table of presets: each candidate's edits, scored and compared with the first."""
    from ldm.batch.benchmark import benchmark_settings, contact_sheet
    from ldm.editing.options import Sampling
    from ldm.miniworld import presets
    from ldm.miniworld.table import edit_missing, write_rows
    from ldm.pipeline import PaintByExample

    bench = setup.judge.bench
    models = [("", setup.edit, opt.ckpt, presets.CANDIDATES, 5.0)]
    if opt.student:
        student = PaintByExample.load(setup.config, opt.student, opt.device, opt.precision)
        models.append(("distilled, ", student, opt.student, presets.STUDENT_CANDIDATES, 1.0))
    rows, reference = {}, None
    for prefix, edit, ckpt, candidates, scale in models:
        for name, preset in candidates.items():
            label = prefix + name
            sampling = Sampling(scale, preset.sampler, preset.steps, 0.0, preset.interval, preset.refresh)
            seed = opt.seed + (name == presets.ANOTHER_SEED)
            outdir = opt.outdir / "presets" / label.replace(", ", "-").replace(" ", "-")
            settings = benchmark_settings(setup.config, ckpt, bench, setup.edit.precision, seed, sampling)
            edit_missing(edit, bench, outdir, settings, sampling, opt.batch_size)
            scored = setup.judge.score(outdir / "results")
            count = presets.evaluations(preset, scale, setup.edit.model.schedule)
            difference = None if reference is None else presets.differences(scored, reference)
            recorded = {key: settings[key] for key in RECORDED}
            rows[label] = replace(scored.row, evaluations=count, sampling=recorded, difference=difference)
            reference = reference or scored
    write_rows(opt.outdir / "presets.json", rows)
    pictured = [row.results for label, row in rows.items() if label in presets.PICTURED]
    with staging(opt.outdir) as temporary:
        contact_sheet(bench, pictured, range(min(8, len(bench)))).save(temporary / "presets.jpg", quality=85)
    print(presets.table(rows))
    print(f"wrote {opt.outdir / 'presets.json'}, pictures beside it")


def compare_solvers(opt: argparse.Namespace, setup: Setup) -> None:
    """Prints and writes the colour error over samplers, steps and scales."""
    from ldm.batch.benchmark import benchmark_settings
    from ldm.miniworld import solvers
    from ldm.miniworld.table import edit_missing

    bench = setup.judge.bench
    if "colour_error" not in setup.judge.identity.keys:
        raise UserError(f"--solvers measures the colour error, which {opt.bench} has none of: use {BENCH}")

    def score(sampling: Sampling) -> float:
        outdir = opt.outdir / "solvers" / f"{sampling.sampler}-{sampling.steps}-{sampling.scale:g}"
        settings = benchmark_settings(setup.config, opt.ckpt, bench, setup.edit.precision, opt.seed, sampling)
        edit_missing(setup.edit, bench, outdir, settings, sampling, opt.batch_size)
        return setup.judge.score(outdir / "results").row.scores["colour_error"].value

    cells = solvers.sweep(score, solvers.SOLVERS, solvers.SCALES)
    solvers.write(opt.outdir / "solvers.json", cells, solvers.SCALES)
    print(solvers.table(cells, solvers.SCALES))
    print(f"wrote {opt.outdir / 'solvers.json'}")


def show(files: Sequence[Path], bench: Path, outdir: Path, name: str) -> None:
    """Prints the rows of files; of several files, writes the rows together, as a plot, and their edits side by side."""
    from ldm.batch.benchmark import contact_sheet
    from ldm.data.bench.cocoee import COCOImageDataset, result_path
    from ldm.miniworld import presets
    from ldm.miniworld.frontier import frontier
    from ldm.miniworld.table import read_rows, table, write_rows

    rows = {label: row for path in files for label, row in read_rows(path).items()}
    compared = any(row.difference is not None for row in rows.values())
    print(presets.table(rows) if compared else table(rows))
    if len(files) > 1:
        write_rows(outdir / f"{name}.json", rows)
        with staging(outdir) as temporary:
            (temporary / f"{name}.svg").write_text(frontier(rows))
        folders = [row.results for row in rows.values()]
        if bench.is_dir():
            cases = COCOImageDataset(bench)
            edited = [
                i for i, case in enumerate(cases.ids) if all(result_path(each, case).exists() for each in folders)
            ]
            if not edited:
                return
            with staging(outdir) as temporary:
                contact_sheet(cases, folders, edited[:12]).save(temporary / f"{name}.png")
