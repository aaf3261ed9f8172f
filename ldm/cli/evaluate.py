"""Score the results of a benchmark: a table, scores.json, and a page to look at.

    paint-by-example evaluate --results results/test_bench/results --bench test_bench

The first three rows are computed as in the paper's tables: FID and QS use the features of CLIP ViT-B/32, not of
Inception. The other rows are further metrics. The real pictures are <bench>/test2017_square (see paint-by-example
squares), the mixture of QS is <bench>/quality_gmm.npz (see paint-by-example fit-quality). Weights are downloaded
once, or are local files; scores.json records which were used. scripts/eval_fid_qs_clip.py is the same command."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.util import UserError, require, shipped

if TYPE_CHECKING:
    from ldm.data.bench.cocoee import COCOImageDataset
    from ldm.evaluation.features import Extractor
    from ldm.evaluation.metrics import Metric
    from ldm.evaluation.summary import Summary

ORACLE = shipped("pretrained_models/mini_oracle.safetensors")


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--results", type=Path, required=True, help="folder of <id>.png")
    p.add_argument("--bench", type=Path, default=Path("test_bench"), help="folder of the benchmark (%(default)s)")
    p.add_argument("--outdir", type=Path, help="for scores.json and index.html (default: evaluation, beside --results)")
    p.add_argument("--real", type=Path, help="folder of real pictures (default: <bench>/test2017_square)")
    p.add_argument("--gmm", type=Path, help="mixture for QS (default: <bench>/quality_gmm.npz)")
    p.add_argument("--skip", nargs="+", default=[], metavar="METRIC", help="metrics to skip: fid_clip, qs, kid, ...")
    p.add_argument(
        "--allow_missing", action="store_true", help="score the other results if some are missing or damaged"
    )
    p.add_argument(
        "--most", type=int, default=400, help="maximum number of cases with pictures on the page (%(default)s)"
    )
    p.add_argument("--batch_size", type=int, default=16, help="pictures per batch (%(default)s)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest available)")
    w = p.add_argument_group("files of weights; downloaded where none is named")
    w.add_argument("--clip_weights", help="OpenAI's ViT-B-32.pt, or open_clip's weights")
    w.add_argument("--clip_model", help="another architecture: open_clip's name, or a JSON file in its config format")
    w.add_argument("--inception_weights", help="weights-inception-2015-12-05-6726825d.pth")
    w.add_argument("--dino_weights", help="dino_deitsmall16_pretrain.pth, or timm's weights")
    w.add_argument("--dino_model", help="another architecture: timm's name")
    w.add_argument("--lpips_weights", help="torchvision's alexnet-owt-7be5be79.pth")
    w.add_argument("--oracle_weights", default=ORACLE, help="the small world's oracle, for its benchmark (%(default)s)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "batch_size", 1, 100_000)
    check_range(opt, "most", 0, 100_000)
    metrics = select(opt)
    if {metric.key for metric in metrics} & {"ssim", "kid", "lpips"}:
        require("torchmetrics", "eval")
    require_results(opt.results)

    from ldm.data.bench.cocoee import COCOImageDataset
    from ldm.evaluation.cases import check_results, require_no_problems

    bench = COCOImageDataset(opt.bench)
    if not opt.allow_missing:  # fails before networks are loaded
        require_no_problems(check_results(opt.results, bench), len(bench))
    settings = read_settings(opt.results, bench)
    outdir = opt.outdir or opt.results.parent / "evaluation"
    keep_other_scores(outdir / "scores.json", {metric.key for metric in metrics})
    summary = score(opt, metrics, bench)
    summary = replace(summary, settings=settings, date=datetime.date.today().isoformat())
    write(opt, summary, bench, outdir)

    from ldm.evaluation.summary import table

    for problem in summary.problems.values():
        print(f"not scored: {problem}", file=sys.stderr)
    print(table(summary, groups()))
    print(f"\nwrote {outdir / 'scores.json'} and {outdir / 'index.html'}")


def select(opt: argparse.Namespace) -> list[Metric]:
    """The metrics that are not skipped; the small world's are only for its own benchmark."""
    from ldm.evaluation.metrics import METRICS, select_metrics
    from ldm.miniworld import scores
    from ldm.miniworld.crops import ATTRIBUTES

    every = (*METRICS, *scores.METRICS)
    available = every if (opt.bench / ATTRIBUTES).exists() else METRICS
    return select_metrics(available, opt.skip, [metric.key for metric in every])


def groups() -> dict[str, str]:
    """Groups of metrics with their titles, in the order of the table."""
    from ldm.evaluation.metrics import GROUPS
    from ldm.miniworld import scores

    return GROUPS | scores.GROUPS


def require_results(results: Path) -> None:
    """Raises UserError: the folder is missing, or the results are in its subfolder "results"."""
    if not results.is_dir():
        raise UserError(f"--results {results} does not exist: make it with scripts/inference_test_bench.py")
    if (inner := results / "results").is_dir():
        raise UserError(f"--results {results} has its pictures in a subfolder: name {inner}")


def read_settings(results: Path, bench: COCOImageDataset) -> dict[str, Any] | None:
    """The settings that scripts/inference_test_bench.py wrote beside the results; None if there is no such file. Raises
    UserError: the results belong to another benchmark, a damaged file."""
    path = results.parent / "settings.json"
    try:
        settings = dict(json.loads(path.read_text())) if path.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it") from error
    if settings and settings.get("cases") not in (None, bench.digest()):
        raise UserError(f"--results {results} belong to another benchmark than {bench.root}: name theirs with --bench")
    return settings


def keep_other_scores(path: Path, keys: set[str]) -> None:
    """Raises UserError if writing the scores `keys` to this file would lose others that it has."""
    try:
        before = {row["key"] for row in json.loads(path.read_text())["metrics"]}
    except (OSError, ValueError, KeyError, TypeError):  # missing, or not a file of scores
        return
    if lost := sorted(before - keys):
        raise UserError(
            f"{path} has scores that would be lost ({', '.join(lost)}): name another --outdir, or skip fewer"
        )


def score(opt: argparse.Namespace, metrics: Sequence[Metric], bench: COCOImageDataset) -> Summary:
    """Loads what the metrics need, and evaluates the results with it."""
    from ldm.editing.checks import pick_device
    from ldm.evaluation.benchmark import evaluate
    from ldm.evaluation.folder import real_statistics, require_real_pictures
    from ldm.evaluation.quality import Mixture
    from ldm.evaluation.scorers import make_scorers
    from ldm.files import sha256_of
    from ldm.miniworld.crops import bench_labels
    from ldm.miniworld.scores import IdentityScorer

    gmm = opt.gmm or opt.bench / "quality_gmm.npz"
    mixture = Mixture.read(gmm) if any(metric.key == "qs" for metric in metrics) else None
    device = pick_device(opt.device)
    place = opt.real or opt.bench / "test2017_square"
    compared = sorted({metric.network for metric in metrics if metric.of_sets})
    if compared:
        require_real_pictures(place)
    networks = load_networks(opt, {metric.network for metric in metrics}, device)
    if mixture:
        mixture.require_features(networks["clip"].identity)
    real = {kind: real_statistics(place, networks[kind], opt.batch_size) for kind in compared}
    scorers = make_scorers(metrics, networks, real, mixture, len(bench))
    if "oracle" in networks:
        scorers.append(IdentityScorer(networks["oracle"], bench_labels(opt.bench)))
    return replace(
        evaluate(opt.results, bench, metrics, scorers, opt.allow_missing, opt.batch_size),
        real={kind: {"place": str(place), "pictures": each.n, **each.texts} for kind, each in real.items()},
        mixture={"file": str(gmm), "sha256": sha256_of(gmm)} if mixture else None,
        skipped=opt.skip,
    )


def load_networks(opt: argparse.Namespace, kinds: set[str | None], device: Any) -> dict[str, Extractor]:
    """The networks of these kinds, with the weights that the flags name or with downloaded ones."""
    from ldm.evaluation import features
    from ldm.miniworld.scores import load_oracle

    load = {
        "clip": lambda: features.load_clip(opt.clip_weights, device, opt.clip_model or features.CLIP),
        "inception": lambda: features.load_inception(opt.inception_weights, device),
        "dino": lambda: features.load_dino(opt.dino_weights, device, opt.dino_model or features.DINO),
        "lpips": lambda: features.load_lpips(opt.lpips_weights, device),
        "oracle": lambda: load_oracle(opt.oracle_weights, device),
    }
    return {kind: load[kind]() for kind in load if kind in kinds}


def write(opt: argparse.Namespace, summary: Summary, bench: COCOImageDataset, outdir: Path) -> None:
    """Writes scores.json and index.html."""
    from ldm.evaluation.cases import load_case
    from ldm.evaluation.page import write_page
    from ldm.files import staging

    numbers = {name: i for i, name in enumerate(bench.ids)}
    with staging(outdir) as temporary:
        (temporary / "scores.json").write_text(json.dumps(summary.as_json(), indent=1, allow_nan=False) + "\n")
        write_page(
            temporary / "index.html",
            summary,
            lambda name: load_case(opt.results, bench, numbers[name]),
            groups(),
            opt.most,
        )
