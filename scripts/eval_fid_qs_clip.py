"""Score the results of a benchmark: a table, scores.json, and a page to look at.

    python scripts/eval_fid_qs_clip.py --results results/test_bench/results --bench test_bench

The first three rows are computed as the paper's tables were: FID and QS there are of the features of CLIP ViT-B/32, not
of Inception. The others stand beside them. The real pictures are <bench>/test2017_square (see
scripts/create_square_gt_for_fid.py), the mixture of QS is <bench>/quality_gmm.npz (see scripts/fit_quality_gmm.py).
Weights are fetched once, or are local files; scores.json says which were used."""

import argparse
import datetime
import json
import sys
from pathlib import Path

from ldm.cli.command import command
from ldm.files import sha256_of, staging
from ldm.util import UserError

ORACLE = Path(__file__).resolve().parent.parent / "pretrained_models/mini_oracle.safetensors"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--results", type=Path, required=True, help="folder of <id>.png")
    p.add_argument("--bench", type=Path, default=Path("test_bench"), help="folder of the benchmark (%(default)s)")
    p.add_argument("--outdir", type=Path, help="for scores.json and index.html (default: evaluation, beside --results)")
    p.add_argument("--real", type=Path, help="folder of real pictures (default: <bench>/test2017_square)")
    p.add_argument("--gmm", type=Path, help="mixture for QS (default: <bench>/quality_gmm.npz)")
    p.add_argument("--skip", nargs="+", default=[], metavar="METRIC", help="leave out, by key: fid_clip, qs, kid, ...")
    p.add_argument(
        "--allow_missing", action="store_true", help="score what is there, if results are missing or damaged"
    )
    p.add_argument("--most", type=int, default=400, help="cases with pictures on the page (400)")
    p.add_argument("--batch_size", type=int, default=16, help="pictures at once (16)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest there is)")
    w = p.add_argument_group("weights, files; fetched where none is named")
    w.add_argument("--clip_weights", help="OpenAI's ViT-B-32.pt, or open_clip's")
    w.add_argument("--clip_model", help="another architecture, by open_clip's name, or a config in"
                   " its format, a JSON file")  # fmt: skip
    w.add_argument("--inception_weights", help="weights-inception-2015-12-05-6726825d.pth")
    w.add_argument("--dino_weights", help="dino_deitsmall16_pretrain.pth, or timm's")
    w.add_argument("--dino_model", help="another architecture, by timm's name")
    w.add_argument("--lpips_weights", help="torchvision's alexnet-owt-7be5be79.pth")
    w.add_argument("--oracle_weights", default=ORACLE, help="the small world's oracle, for its benchmark (%(default)s)")
    return p


def settings_of(results: Path, bench) -> dict | None:
    """What the results were made with, as scripts/inference_test_bench.py wrote it. Raises UserError: for another
    benchmark, or damaged."""
    path = results.parent / "settings.json"
    try:
        settings = dict(json.loads(path.read_text())) if path.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it") from error
    if settings and settings.get("cases") not in (None, bench.digest()):
        raise UserError(
            f"--results {results}: were made of another benchmark than {bench.root}; name theirs with --bench"
        )
    return settings


def keep_other_scores(path: Path, keys: set[str]) -> None:
    """Raises UserError where scores that are there already would be lost."""
    try:
        before = {row["key"] for row in json.loads(path.read_text())["metrics"]}
    except (OSError, ValueError, KeyError, TypeError):  # none, or nothing to keep
        return
    if lost := sorted(before - keys):
        raise UserError(
            f"{path}: has scores that this would lose ({', '.join(lost)}); name another --outdir, or skip fewer"
        )


@command
def main() -> None:
    opt = parser().parse_args()
    for name, least in (("batch_size", 1), ("most", 0)):
        if not least <= getattr(opt, name) <= 100_000:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use {least} to 100000")

    from ldm.data.bench.cocoee import COCOImageDataset, refuse, result_path
    from ldm.evaluation.benchmark import OF_SETS, REFUSAL, check_results, chosen, evaluate, table
    from ldm.miniworld.crops import ATTRIBUTES

    metrics = chosen(opt.skip, world=(opt.bench / ATTRIBUTES).exists())
    if not opt.results.is_dir():
        raise UserError(
            f"--results {opt.results}: there is no such folder; make it with scripts/inference_test_bench.py"
        )
    if (inner := opt.results / "results").is_dir():
        raise UserError(f"--results {opt.results}: the pictures are a folder deeper; name {inner}")
    bench = COCOImageDataset(opt.bench)
    if not opt.allow_missing:  # what can be told before networks are loaded, is
        refuse(check_results(opt.results, bench), len(bench), *REFUSAL)
    settings = settings_of(opt.results, bench)
    outdir = opt.outdir or opt.results.parent / "evaluation"
    keep_other_scores(outdir / "scores.json", {metric.key for metric in metrics})

    from ldm.editing.checks import pick_device
    from ldm.evaluation import features
    from ldm.evaluation.folder import real_statistics, require_real
    from ldm.evaluation.page import write_page
    from ldm.evaluation.quality import Mixture
    from ldm.images import open_picture, upright_rgb

    gmm = opt.gmm or opt.bench / "quality_gmm.npz"
    mixture = Mixture.read(gmm) if any(metric.key == "qs" for metric in metrics) else None
    device = pick_device(opt.device)
    place = opt.real or opt.bench / "test2017_square"
    if any(metric.key in OF_SETS for metric in metrics):
        require_real(place)
    load = {
        "clip": lambda: features.load_clip(opt.clip_weights, device, opt.clip_model or features.CLIP),
        "inception": lambda: features.load_inception(opt.inception_weights, device),
        "dino": lambda: features.load_dino(opt.dino_weights, device, opt.dino_model or features.DINO),
        "lpips": lambda: features.load_lpips(opt.lpips_weights, device),
        "oracle": lambda: features.load_oracle(opt.oracle_weights, device),
    }
    needed = {kind: load[kind]() for kind in load if any(kind in metric.needs for metric in metrics)}
    if mixture:
        mixture.check(needed["clip"].identity)
    kinds = {metric.needs[0] for metric in metrics if metric.key in OF_SETS}
    real = {kind: real_statistics(place, needed[kind], opt.batch_size) for kind in sorted(kinds)}

    summary = evaluate(opt.results, bench, needed, real, mixture, metrics, opt.allow_missing, opt.batch_size)
    summary["settings"] = settings
    summary["real"] = {kind: {"place": str(place), "pictures": each.n, **each.texts} for kind, each in real.items()}
    summary["mixture"] = {"file": str(gmm), "sha256": sha256_of(gmm)} if mixture else None
    summary["left_out"] = [{"name": name, "why": "--skip"} for name in opt.skip]
    summary["date"] = datetime.date.today().isoformat()

    def pictures(name: str) -> dict:
        source, mask, reference = bench.pictures(bench.ids.index(name))
        result = upright_rgb(open_picture(result_path(opt.results, name), "result"))
        return {"source": source, "mask": mask, "reference": reference, "result": result}

    with staging(outdir) as temporary:
        (temporary / "scores.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        write_page(temporary / "index.html", summary, pictures, opt.most)
    for problem in summary["cases"]["problems"]:
        print(f"not scored: {problem['problem']}", file=sys.stderr)
    print(table(summary))
    print(f"\nwrote {outdir / 'scores.json'} and {outdir / 'index.html'}")


if __name__ == "__main__":
    main()
