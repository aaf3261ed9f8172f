"""A folder of results, and the benchmark they are for -> scores of every case, and their table.

The `paper` group repeats the columns of the paper's tables as they were computed: FID and QS on the features of CLIP
ViT-B/32, not of Inception, and the CLIP score of the region. The group `beside` asks the same questions with the
measures that their names promise, and others that the paper does not ask. The group `world` is for the small world's
benchmark, whose references' identities are known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ldm.conventions import mask_to_tensor, pixels_to_tensor
from ldm.data.bench.cocoee import COCOImageDataset, refuse, result_path
from ldm.evaluation.background import background_psnr, background_ssim, seam, with_source_region
from ldm.evaluation.clip_score import bounding_box, clip_reference, clip_region, copy_paste, similarity
from ldm.evaluation.features import CLIP, Extractor, pixels
from ldm.evaluation.fid import Statistics, frechet_distance, kernel_distance, rows_to_keep
from ldm.evaluation.folder import batches
from ldm.evaluation.quality import Mixture, quality_score
from ldm.images import open_picture, upright_rgb, upright_size
from ldm.miniworld.crops import bench_identities
from ldm.miniworld.oracle import colour_error
from ldm.miniworld.scene import PATTERNS, SHAPES
from ldm.util import UserError, cores

GROUPS = {
    "paper": "As in the paper's tables: FID and QS are of CLIP's features",
    "beside": "Beside them",
    "world": "Of the reference's identity, as the small world's oracle tells it",
}
RESAMPLES, LEVEL = 2000, 0.95  # of the bootstrap
REFUSAL = (
    "be scored",
    "remove what is damaged and run scripts/inference_test_bench.py again, or score the others with --allow_missing",
)
COCOEE, FEW = 3500, 2048  # pictures: in the paper's benchmark; the dimension of Inception's features
LEAST = 16  # px, a picture's side


@dataclass(frozen=True)
class Metric:
    """better: "higher", "lower", or "1", the nearer the better. needs: extractors. published: of the released model."""

    key: str
    name: str
    group: str
    better: str
    needs: tuple[str, ...]
    meaning: str
    published: float | None = None


METRICS = (
    Metric("fid_clip", "FID (CLIP)", "paper", "lower", ("clip",),
           "Fréchet distance of results and real pictures in CLIP's features, in the paper those of ViT-B/32", 3.18),
    Metric("qs", "QS", "paper", "higher", ("clip",),
           "likelihood under a mixture of Gaussians fitted to real pictures, in the same features, 0 to 100", 77.80),
    Metric("clip_score", "CLIP score", "paper", "higher", ("clip",),
           "cosine of the painted region and the reference, in the same features, times 100", 84.97),
    Metric("fid_inception", "FID (Inception)", "beside", "lower", ("inception",),
           "the Fréchet distance that goes by this name elsewhere, in the features of Inception v3"),
    Metric("kid", "KID x 1000", "beside", "lower", ("inception",),
           "kernel distance in the same features; unbiased, so it suits few pictures better"),
    Metric("dino", "DINO similarity", "beside", "higher", ("dino",),
           "cosine of the painted region and the reference in the features of DINO, which tells instances apart"),
    Metric("psnr", "Background PSNR", "beside", "higher", (), "of what was to be kept, against the source, in dB"),
    Metric("ssim", "Background SSIM", "beside", "higher", (), "structural similarity of the same, at most 1"),
    Metric("lpips", "Background LPIPS", "beside", "lower", ("lpips",),
           "perceptual distance to the source, the painted region put back"),
    Metric("seam", "Seam", "beside", "1", (),
           "steepness across the region's edge over that around it: 1 where the edge does not show"),
    Metric("copy_paste", "Copy and paste", "beside", "lower", (),
           "correlation of the painted region's pixels with the reference's: 1 where it is pasted"),
    Metric("shape", "Shape", "world", "higher", ("oracle",), "share of regions that show the reference's shape"),
    Metric("pattern", "Pattern", "world", "higher", ("oracle",), "share of regions that show the reference's pattern"),
    Metric("colour_error", "Colour error", "world", "lower", ("oracle",),
           "distance of the region's colours to the reference's, Delta E (CIE 1976)"),
)  # fmt: skip
OF_SETS = ("fid_clip", "fid_inception", "kid")  # have no value of a single case


def chosen(skip: Iterable[str] = (), world: bool = False) -> list[Metric]:
    """The metrics without those named by key; with the small world's where `world`. Raises UserError: an unknown name,
    none left."""
    unknown = [name for name in skip if name not in {metric.key for metric in METRICS}]
    if unknown:
        raise UserError(f"--skip {unknown[0]}: is no metric; there are {', '.join(metric.key for metric in METRICS)}")
    found = [metric for metric in METRICS if metric.key not in skip and (world or metric.group != "world")]
    if not found:
        raise UserError("--skip: leaves nothing to measure; name fewer")
    return found


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% confidence interval of the mean of values (n,), by the percentile bootstrap (Efron 1979)."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class Cases(Dataset):
    """`cases[i]` -> id with what the extractors take and the scores that need none, or id and what is wrong with it."""

    def __init__(self, results: Path, bench: COCOImageDataset, extractors: dict[str, Extractor], keys: Collection[str]):
        self.results, self.bench, self.keys = results, bench, keys
        self.clip, self.dino, self.oracle = (extractors.get(kind) for kind in ("clip", "dino", "oracle"))
        self.identities = bench_identities(bench.root) if self.oracle else {}

    def __len__(self) -> int:
        return len(self.bench)

    def __getitem__(self, i: int) -> tuple[str, dict[str, Any] | str]:
        name = self.bench.ids[i]
        try:
            return name, self.load(i)
        except UserError as error:
            return name, str(error)

    def load(self, i: int) -> dict[str, Any]:
        source, white, reference = self.bench.pictures(i)
        path = result_path(self.results, self.bench.ids[i])
        result = upright_rgb(open_picture(path, "result"))
        if result.size != source.size:
            raise UserError(wrong_size(path, result.size, source.size))
        if min(result.size) < LEAST:
            raise UserError(f"result {path}: is less than {LEAST} pixels wide or high")
        mask, keep = np.asarray(white), mask_to_tensor(white)
        case: dict[str, Any] = {"image": pixels(result), "source": pixels(source), "keep": keep.numpy()}
        if self.clip:
            case["clip"] = self.clip.prepare(result)
            case["clip_region"] = clip_region(result, mask, self.clip.size)
            case["clip_reference"] = clip_reference(reference, self.clip.size)
        if box := bounding_box(mask):
            r0, r1, c0, c1 = box
            region = result.crop((c0, r0, c1, r1))
            if self.dino:
                case["dino_region"] = self.dino.prepare(region)
                case["dino_reference"] = self.dino.prepare(reference)
            if self.oracle and self.bench.ids[i] in self.identities:
                case["oracle_region"] = self.oracle.prepare(region)
                case["identity"] = self.identities[self.bench.ids[i]]
            case["copy_paste"] = copy_paste(region, reference) if "copy_paste" in self.keys else None
        image, original = pixels_to_tensor(result), pixels_to_tensor(source)
        if keep.any():  # a mask may be white all over
            case["psnr"] = background_psnr(image, original, keep) if "psnr" in self.keys else None
            case["ssim"] = background_ssim(image, original, keep) if "ssim" in self.keys else None
        case["seam"] = seam(image, keep) if "seam" in self.keys else None
        return case


def wrong_size(path: Path, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    return f"result {path}: is {found[0]} x {found[1]} and its source {wanted[0]} x {wanted[1]}"


def check_results(results: Path, bench: COCOImageDataset) -> dict[str, str]:
    """Id -> what is wrong: a result that is missing, is no picture, damaged or of another size than its photo; or what
    the headers of the benchmark's own files tell."""
    problems = bench.problems()

    def problem(name: str) -> str | None:
        path = result_path(results, name)
        try:
            found = upright_size(open_picture(path, "result"))
            return None if found == (wanted := bench.size(name)) else wrong_size(path, found, wanted)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(cores()) as pool:
        sound = [name for name in bench.ids if name not in problems]
        found = tqdm(pool.map(problem, sound), desc="looking through", total=len(sound), unit="picture")
        return problems | {name: words for name, words in zip(sound, found, strict=True) if words}


def evaluate(
    results: Path,
    bench: COCOImageDataset,
    extractors: dict[str, Extractor],
    real: dict[str, Statistics],
    mixture: Mixture | None,
    metrics: Collection[Metric] | None = None,
    allow_missing: bool = False,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Scores <results>/<id>.png of every case of the benchmark; of a case its scores are kept, its pictures are not.

    extractors: those that the metrics need, by kind; real: statistics of real pictures for "clip" and "inception";
    mixture: for QS; metrics: None for chosen(). -> what goes to scores.json: metrics with value, 95% interval, number
    of cases; per_case; cases, with all problems; weights.

    Raises UserError: cases that cannot be scored, unless allow_missing; fewer than two that can."""
    metrics = chosen() if metrics is None else metrics
    keys = [metric.key for metric in metrics]
    assert all(kind in extractors for metric in metrics for kind in metric.needs)
    assert mixture is not None or "qs" not in keys
    found = {metric.needs[0]: Statistics() for metric in metrics if metric.key in OF_SETS}
    rows, done = rows_to_keep(len(bench)), 0
    per_case: list[dict[str, Any]] = []
    problems: dict[str, str] = {}
    for batch in batches(Cases(results, bench, extractors, keys), batch_size, "scoring"):
        good = []
        for number, (name, case) in enumerate(batch, done):
            if isinstance(case, str):
                problems[name] = case
            else:
                good.append((name, case, number in rows))
        done += len(batch)
        if good:
            names, cases, kept = zip(*good, strict=True)
            scores = score(cases, extractors, mixture, found, np.array(kept), keys)
            per_case += [{"id": name, **each} for name, each in zip(names, scores, strict=True)]
    if not allow_missing:
        refuse(problems, len(bench), *REFUSAL)
    if len(per_case) < 2:
        raise UserError(f"{results}: has {len(per_case)} results that can be scored; two are the least")
    values = of_sets(found, real, keys)
    return {
        "results": str(results),
        "bench": str(bench.root),
        "cases": {
            "expected": len(bench),
            "scored": len(per_case),
            "problems": [{"id": name, "problem": problem} for name, problem in problems.items()],
        },
        "metrics": [summed(metric, per_case, values) for metric in metrics],
        "weights": {kind: extractor.record() for kind, extractor in extractors.items()},
        "per_case": per_case,
    }


def score(
    cases: Sequence[dict[str, Any]],
    extractors: dict[str, Extractor],
    mixture: Mixture | None,
    found: dict[str, Statistics],
    kept: np.ndarray,
    keys: Collection[str],
) -> list[dict[str, float | None]]:
    """The scores of each case of a batch, by key; adds the features to the statistics found, and those kept to their
    rows."""
    scores = [{key: case.get(key) for key in keys if key not in OF_SETS} for case in cases]

    def note(key: str, numbers: Iterable[Any], places: Iterable[int]) -> None:
        for place, number in zip(places, numbers, strict=True):
            scores[place][key] = float(number)

    if {"fid_clip", "qs"} & set(keys):
        features = extractors["clip"]([case["clip"] for case in cases]).numpy()
        if "clip" in found:
            found["clip"].add(features)
        if "qs" in keys:
            note("qs", quality_score(mixture.log_likelihood(features)), range(len(cases)))
    for kind, key, factor in (("clip", "clip_score", 100.0), ("dino", "dino", 1.0)):
        places = [i for i, case in enumerate(cases) if case.get(f"{kind}_region") is not None]
        if key in keys and places:
            both = [[cases[i][f"{kind}_{what}"] for i in places] for what in ("region", "reference")]
            note(key, similarity(*(extractors[kind](inputs) for inputs in both)) * factor, places)
    places = [i for i, case in enumerate(cases) if "oracle_region" in case]
    if "oracle" in extractors and places:
        told = extractors["oracle"]([cases[i]["oracle_region"] for i in places])
        for key, values in identity_scores(told, [cases[i]["identity"] for i in places]).items():
            if key in keys:
                note(key, values, places)
    if "inception" in found:
        found["inception"].add(extractors["inception"]([case["image"] for case in cases]).numpy(), kept)
    places = [i for i, case in enumerate(cases) if case["keep"].any()]
    if "lpips" in keys and places:
        pairs = ([cases[i]["image"], cases[i]["source"], cases[i]["keep"]] for i in places)
        signed = [
            (image / np.float32(127.5) - 1, source / np.float32(127.5) - 1, keep) for image, source, keep in pairs
        ]
        backgrounds = [with_source_region(*each) for each in signed]
        note("lpips", extractors["lpips"](backgrounds, [source for _, source, _ in signed]), places)
    return scores


def identity_scores(told: Tensor, wanted: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """What the oracle told of regions (B,24), against their references' identities -> (B,) by metric."""
    shape, pattern, colours = told.split([len(SHAPES), len(PATTERNS), 6], dim=1)
    columns = (np.array([each[key] for each in wanted]) for key in ("shape", "pattern", "colours"))
    shapes, patterns, both = map(torch.from_numpy, columns)
    return {
        "shape": (shape.argmax(dim=1) == shapes).float(),
        "pattern": (pattern.argmax(dim=1) == patterns).float(),
        "colour_error": colour_error(colours.unflatten(1, (2, 3)), both),
    }


def of_sets(found: dict[str, Statistics], real: dict[str, Statistics], keys: Collection[str]) -> dict[str, float]:
    """The distances between sets of pictures, by key."""
    values = {}
    for kind, own in found.items():
        other = real[kind]
        if f"fid_{kind}" in keys:
            values[f"fid_{kind}"] = frechet_distance(own.mean, own.covariance, other.mean, other.covariance)
        if kind == "inception" and "kid" in keys:
            values["kid"] = 1000 * kernel_distance(np.array(other.rows), np.array(own.rows))
    assert all(np.isfinite(value) for value in values.values()), values
    return values


def summed(metric: Metric, per_case: list[dict[str, Any]], values: dict[str, float]) -> dict[str, Any]:
    """A metric's row of the table."""
    row = {"key": metric.key, "name": metric.name, "group": metric.group, "better": metric.better}
    row |= {"meaning": metric.meaning, "published": metric.published, "low": None, "high": None}
    if metric.key in OF_SETS:
        return row | {"value": values[metric.key], "cases": len(per_case)}
    numbers = np.array([case[metric.key] for case in per_case if case[metric.key] is not None])
    if not len(numbers):
        return row | {"value": None, "cases": 0}
    low, high = mean_interval(numbers)
    return row | {"value": float(numbers.mean()), "low": low, "high": high, "cases": len(numbers)}


ARROWS = {"higher": "higher", "lower": "lower", "1": "near 1"}


def table(summary: dict[str, Any]) -> str:
    """The metrics of a summary as text; what was published beside it where that can be compared."""
    cases = summary["cases"]
    lines = [f"{cases['scored']} of {cases['expected']} cases of {summary['bench']}: {summary['results']}"]
    network = summary["weights"].get("clip", {}).get("model", CLIP)
    published = network == CLIP and cases["scored"] == COCOEE
    for group, title in GROUPS.items():
        rows = [row for row in summary["metrics"] if row["group"] == group]
        if rows:
            head = f"{'':18}{'value':>10}  {'95% interval':^20}{'cases':>7}  {'better':8}"
            lines += ["", title, head + ("  published" if group == "paper" and published else "")]
        for row in rows:
            value = (
                "-" if row["value"] is None else f"{row['value']:.4g}" if row["value"] < 1 else f"{row['value']:.3f}"
            )
            interval = "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"
            line = f"{row['name']:18}{value:>10}  {interval:^20}{row['cases']:>7}  {ARROWS[row['better']]:8}"
            lines.append(line + (f"  {row['published']:.2f}" if published and row["published"] else ""))
    if network != CLIP:
        lines += ["", f"CLIP is {network} here, in the paper {CLIP}: the numbers do not compare."]
    if cases["scored"] < FEW and {"fid_clip", "fid_inception"} & {row["key"] for row in summary["metrics"]}:
        lines += ["", f"Of fewer than {FEW} pictures a FID comes out too high; KID does not."]
    return "\n".join(line.rstrip() for line in lines)
