"""The small world's table: rows of edits and of baselines, scored over a benchmark of shapes or of individuals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.batch.benchmark import edit_cases, require_same_settings
from ldm.conventions import image_to_tensor, tensor_to_image
from ldm.data.bench.cocoee import COCOImageDataset, case_path, result_path
from ldm.editing.options import Sampling, Selection
from ldm.evaluation.benchmark import CONFIDENCE, evaluate
from ldm.evaluation.features import Extractor
from ldm.evaluation.fid import Statistics, frechet_distance
from ldm.evaluation.folder import features_of, real_statistics
from ldm.evaluation.metrics import METRICS
from ldm.evaluation.scorers import make_scorers
from ldm.evaluation.summary import CaseScores
from ldm.files import staging
from ldm.miniworld.parts import mask_box
from ldm.miniworld.scores import METRICS as IDENTITY_METRICS
from ldm.miniworld.scores import TOP1, IdentityScorer, LookalikeScorer
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.pipeline import PaintByExample
from ldm.util import UserError

COLUMNS = {  # metric -> head of its column
    "shape": "shape",
    "pattern": "pattern",
    "colour_error": "colour error",
    "top1": "top-1 of 50",
    "clip_score": "CLIP score",
    "fid_clip": "FID",
    "copy_paste": "copy-paste",
    "seam": "seam",
}
FID_RESAMPLES = 200  # of FID's bootstrap
BATCH_SIZE = 50  # pictures, for CLIP's features


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A row of the table. scores: metric -> estimate; results: the folder of the edits.

    Rows of --presets also have evaluations of the UNet (whole pictures, rectangles), the sampling, and differences to
    the first row's scores."""

    scores: Mapping[str, Estimate]
    results: Path
    evaluations: tuple[int, int] | None = None
    sampling: Mapping[str, Any] | None = None
    difference: Mapping[str, Estimate] | None = None


@dataclass(frozen=True)
class Scored:
    """The scores of a folder of results. fids: from resampled_fids."""

    row: Row
    cases: Sequence[CaseScores]
    fids: np.ndarray


# ------------------------------------------------------------------------------------------- rows


def write_unedited(bench: COCOImageDataset, results: Path) -> None:
    """The photos themselves, as results."""
    with staging(results) as temporary:
        for name in bench.ids:
            shutil.copy(case_path(bench.root, "GT_3500", name), result_path(temporary, name))


def write_pasted(bench: COCOImageDataset, results: Path) -> None:
    """The photos with the references squashed into their regions, as results."""
    with staging(results) as temporary:
        for i, name in enumerate(bench.ids):
            photo, mask, reference = bench.pictures(i)
            r0, r1, c0, c1 = mask_box(bench, i, mask)
            photo.paste(reference.resize((c1 - c0, r1 - r0), Image.Resampling.BILINEAR), (c0, r0))
            photo.save(result_path(temporary, name))


def write_reconstructed(model: LatentDiffusion, bench: COCOImageDataset, pictures: Path, results: Path) -> None:
    """The cases' pictures of a folder through the autoencoder, as results."""
    with staging(results) as temporary:
        for name in bench.ids:
            image = image_to_tensor(Image.open(result_path(pictures, name)))[None].to(model.device)
            with torch.no_grad():
                reconstruction = model.first_stage_model.reconstruct(image)[0]
            tensor_to_image(reconstruction).save(result_path(temporary, name))


def edit_missing(
    edit: PaintByExample,
    bench: COCOImageDataset,
    outdir: Path,
    settings: dict[str, Any],
    sampling: Sampling,
    batch_size: int,
    selection: Selection = Selection(),
) -> None:
    """Edits the cases that have no result yet. settings: those of ldm.batch.benchmark.benchmark_settings.
    Raises UserError: a case that cannot be edited, existing results with other settings."""
    require_same_settings(outdir / "settings.json", settings)
    results = outdir / "results"
    todo = [i for i, name in enumerate(bench.ids) if not result_path(results, name).exists()]
    if problems := edit_cases(edit, bench, todo, results, settings["seed"], batch_size, sampling, selection=selection):
        raise UserError(f"{len(problems)} cases cannot be edited ({problems[0]}): repair their files")


class Judge:
    """Scores folders of results for one benchmark. clip: an extractor; identity: the scorer of shapes or of
    individuals, whose first metric is 1 or 0. Raises UserError: real pictures that are missing or damaged."""

    def __init__(self, bench: COCOImageDataset, clip: Extractor, identity: IdentityScorer | LookalikeScorer):
        self.bench, self.clip, self.identity = bench, clip, identity
        self.real = real_statistics(bench.root / "test2017_square", clip, BATCH_SIZE)
        own = (metric for metric in (*IDENTITY_METRICS, TOP1) if metric.key in identity.keys)
        self.metrics = [metric for metric in (*METRICS, *own) if metric.key in COLUMNS]

    def score(self, results: Path) -> Scored:
        """The scores of a folder of results. Raises UserError: a missing or damaged result."""
        extractors = {"clip": self.clip}
        scorers = make_scorers(self.metrics, extractors, {"clip": self.real}, None, len(self.bench))
        scorers.append(self.identity)  # it gathers nothing, so that one serves all evaluations
        summary = evaluate(results, self.bench, self.metrics, scorers)
        found = {score.metric.key: Estimate(score.value, score.low, score.high) for score in summary.scores}
        paths = [result_path(results, name) for name in self.bench.ids]
        features = np.concatenate(list(features_of(paths, self.clip, BATCH_SIZE, "features")))
        fids = resampled_fids(features, self.real)
        fid = found["fid_clip"].value
        found["fid_clip"] = Estimate(fid, *interval_around(fid, fids))
        return Scored(Row(found, results), summary.per_case, fids)


def resampled_fids(features: np.ndarray, real: Statistics, seed: int = 0) -> np.ndarray:
    """(FID_RESAMPLES,): FIDs of pictures resampled from those of features (n,D). Calls with the same n and seed draw
    the same pictures."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(FID_RESAMPLES):
        resampled = Statistics()
        resampled.add(features[rng.integers(len(features), size=len(features))])
        values.append(frechet_distance(resampled.mean, resampled.covariance, real.mean, real.covariance))
    return np.array(values)


def interval_around(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of a FID, moved so that the mean of the resampled FIDs is the value: resampling few
    pictures makes every FID larger by about the same amount."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - resampled.mean() + value
    return float(low), float(high)


# ------------------------------------------------------------------------------------------ table


def table(rows: Mapping[str, Row]) -> str:
    """Rows by name, as a table in Markdown; the number after ± is half the width of the confidence interval."""
    return "\n".join(_lines(rows))


def _lines(rows: Mapping[str, Row]) -> Iterator[str]:
    shown = {key: head for key, head in COLUMNS.items() if any(key in row.scores for row in rows.values())}
    yield "| | " + " | ".join(shown.values()) + " |"
    yield "|---" * (len(shown) + 1) + "|"
    for name, row in rows.items():
        cells = (_cell(key, row.scores[key]) if key in row.scores else "" for key in shown)
        yield f"| {name} | " + " | ".join(cells) + " |"


def decimals_of(key: str) -> int:
    """Decimals with which the table shows a metric."""
    return 1 if key in ("colour_error", "clip_score") else 2


def _cell(key: str, score: Estimate) -> str:
    digits = decimals_of(key)
    return f"{score.value:.{digits}f} ± {(score.high - score.low) / 2:.{digits}f}"


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by name, from a file of write_rows. Raises UserError: missing, damaged, or another kind of file."""
    try:
        return {name: _row_of_json(row, path.parent) for name, row in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold rows of the table ({error!r}): name a file that scripts/mini_table.py wrote"
        ) from error


def write_rows(path: Path, rows: Mapping[str, Row]) -> None:
    """Writes rows by name as JSON; folders of results are relative to the file."""
    content = {name: _row_as_json(row, path.parent) for name, row in rows.items()}
    with staging(path.parent) as temporary:
        (temporary / path.name).write_text(json.dumps(content, indent=1) + "\n")


def _row_as_json(row: Row, folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {key: asdict(score) for key, score in row.scores.items()}
    fields["results"] = os.path.relpath(row.results, folder)
    if row.evaluations is not None:
        fields |= {"evaluations": row.evaluations, "sampling": row.sampling}
    if row.difference is not None:
        fields["difference"] = {key: asdict(score) for key, score in row.difference.items()}
    return fields


def _row_of_json(fields: Mapping[str, Any], folder: Path) -> Row:
    scores = {key: Estimate(**value) for key, value in fields.items() if key in COLUMNS}
    if "fid_clip" not in scores:
        raise ValueError("a row without scores")
    evaluations, difference = fields.get("evaluations"), fields.get("difference")
    return Row(
        scores,
        folder / fields["results"],
        None if evaluations is None else tuple(evaluations),
        fields.get("sampling"),
        None if difference is None else {key: Estimate(**each) for key, each in difference.items()},
    )
