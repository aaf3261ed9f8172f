"""The small world's figures, from weights alone: what its autoencoder and its CLIP can do, and how edits score."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.batch.benchmark import edit_cases, require_same_settings
from ldm.checkpoint.files import read_file
from ldm.conventions import image_to_tensor, reference_to_tensor
from ldm.data.bench.cocoee import COCOImageDataset, case_path, result_path
from ldm.data.masks import REFERENCE_PADDING
from ldm.editing.options import Sampling
from ldm.evaluation.benchmark import LEVEL, chosen, evaluate, identity_scores
from ldm.evaluation.clip_score import bounding_box
from ldm.evaluation.features import Extractor
from ldm.evaluation.fid import Statistics, frechet_distance
from ldm.evaluation.folder import features_of
from ldm.files import staging
from ldm.miniworld.crops import ATTRIBUTES, bench_identities
from ldm.miniworld.scene import PATTERNS, SHAPES, caption_tokens, pattern_caption, shape_caption
from ldm.modules.encoders.clip import build_clip
from ldm.pipeline import PaintByExample
from ldm.util import UserError

SKIPPED = ("fid_inception", "kid", "dino", "lpips", "psnr", "ssim", "qs")
COLUMNS = {  # metric -> head of its column
    "shape": "shape",
    "pattern": "pattern",
    "colour_error": "colour error",
    "clip_score": "CLIP score",
    "fid_clip": "FID",
    "copy_paste": "copy-paste",
    "seam": "seam",
}
FID_RESAMPLES = 200  # of its bootstrap


# ------------------------------------------------------------------------------------------ parts


def read_clip(config: Path, file: Path) -> Any:
    """open_clip's CLIP of a config, with its weights. Raises UserError."""
    clip = build_clip(config)
    tensors = {name: tensor.float() for name, tensor in read_file(file).items()}
    own = clip.state_dict()
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        raise UserError(f"CLIP {file}: is of another config than {config}; name both")
    clip.load_state_dict(tensors)
    return clip.eval().requires_grad_(False)


def require_identities(bench: COCOImageDataset) -> dict[str, dict[str, Any]]:
    """Id -> what its reference is. Raises UserError: not the small world's benchmark, or not whole."""
    identities = bench_identities(bench.root)
    if absent := [name for name in bench.ids if name not in identities]:
        raise UserError(
            f"{bench.root}: {ATTRIBUTES} does not say what {len(absent)} of its references are; name the small world's "
            "benchmark, or remove it to have it drawn"
        )
    return identities


@torch.no_grad()
def reconstruction_psnr(model: Any, bench: COCOImageDataset) -> float:
    """dB, the mean over the benchmark's photos, each through the autoencoder, its posterior's mean."""
    values = []
    for i in range(len(bench)):
        image = image_to_tensor(bench.pictures(i)[0])[None].to(model.device)
        again = model.first_stage_model.reconstruct(image).clamp(-1, 1)
        values.append(-10 * torch.log10((again - image).square().mean() / 4).item())
    return float(np.mean(values))


@torch.no_grad()
def class_features(clip: Any) -> tuple[Tensor, Tensor]:
    """Features of the captions of each shape (12,D) and of each pattern (6,D)."""

    def told(texts: list[str]) -> Tensor:
        return clip.encode_text(torch.from_numpy(np.stack([caption_tokens(text) for text in texts])), normalize=True)

    return told([shape_caption(shape) for shape in SHAPES]), told([pattern_caption(pattern) for pattern in PATTERNS])


@torch.no_grad()
def zero_shot_accuracy(clip: Any, bench: COCOImageDataset, batch_size: int = 50) -> tuple[float, float]:
    """Of shape and of pattern: how many of the benchmark's references are nearest to the captions of their own.
    Training has not shown such pairs of the two."""
    identities, size = require_identities(bench), clip.visual.image_size
    classes, right = class_features(clip), []
    for names in (bench.ids[start : start + batch_size] for start in range(0, len(bench), batch_size)):
        references = [bench.pictures(bench.ids.index(name))[2] for name in names]
        images = torch.stack([reference_to_tensor(reference, size) for reference in references])
        seen = clip.encode_image(images)
        for key, features in zip(("shape", "pattern"), classes, strict=True):
            wanted = torch.tensor([identities[name][key] for name in names])
            right.append((seen @ features.T).argmax(dim=1) == wanted)
    return tuple(torch.cat(each).float().mean().item() for each in (right[0::2], right[1::2]))


def oracle_on_real(oracle: Extractor, bench: COCOImageDataset) -> dict[str, float]:
    """The oracle's ceiling: what it tells of the references' own objects, reduced to the size of their regions."""
    attributes = json.loads((bench.root / ATTRIBUTES).read_text())
    regions = []
    for i, name in enumerate(bench.ids):
        _, mask, reference = bench.pictures(i)
        r0, r1, c0, c1 = _region(bench, i, mask)
        x0, y0, x1, y1 = attributes[name]["reference"]["box"]
        left, top = (min(edge, REFERENCE_PADDING) for edge in (x0, y0))
        thing = reference.crop((left, top, left + x1 - x0, top + y1 - y0))
        thing.thumbnail((max(c1 - c0, r1 - r0),) * 2, Image.Resampling.BILINEAR)
        regions.append(oracle.prepare(thing))
    identities = require_identities(bench)
    scores = identity_scores(oracle(regions), [identities[name] for name in bench.ids])
    return {key: float(value.mean()) for key, value in scores.items()}


def _region(bench: COCOImageDataset, i: int, mask: Image.Image) -> tuple[int, int, int, int]:
    """Of a mask: r0, r1, c0, c1. Raises UserError: nothing of it is white."""
    box = bounding_box(np.asarray(mask))
    if box is None:
        raise UserError(f"{bench.root}: the mask of case {bench.ids[i]} has no region; mend it")
    return box


# ------------------------------------------------------------------------------------------- rows


def unedited(bench: COCOImageDataset, results: Path) -> None:
    """The photos as they are, as results."""
    with staging(results) as temporary:
        for name in bench.ids:
            shutil.copy(case_path(bench.root, "GT_3500", name), result_path(temporary, name))


def pasted(bench: COCOImageDataset, results: Path) -> None:
    """The references, squashed into their regions, as results."""
    with staging(results) as temporary:
        for i, name in enumerate(bench.ids):
            photo, mask, reference = bench.pictures(i)
            r0, r1, c0, c1 = _region(bench, i, mask)
            photo.paste(reference.resize((c1 - c0, r1 - r0), Image.Resampling.BILINEAR), (c0, r0))
            photo.save(result_path(temporary, name))


def edited(
    edit: PaintByExample,
    bench: COCOImageDataset,
    outdir: Path,
    settings: dict[str, Any],
    sampling: Sampling,
    batch_size: int,
) -> None:
    """Edits of all cases, those that are not there yet. settings: those of ldm.batch.benchmark.benchmark_settings.
    Raises UserError: a case that cannot be edited, others than these settings for what is there."""
    require_same_settings(outdir / "settings.json", settings)
    results = outdir / "results"
    todo = [i for i, name in enumerate(bench.ids) if not result_path(results, name).exists()]
    if problems := edit_cases(edit, bench, todo, results, settings["seed"], batch_size, sampling):
        raise UserError(f"{len(problems)} cases cannot be edited ({problems[0]}); mend them")


class Scored(NamedTuple):
    """row: metric -> value, low, high, and "results", the folder; cases: scores of each; fids: of resampled_fids."""

    row: dict[str, Any]
    cases: list[dict[str, Any]]
    fids: np.ndarray


def scored(
    results: Path,
    bench: COCOImageDataset,
    extractors: dict[str, Extractor],
    real: Statistics,
) -> Scored:
    """Scores a folder of results."""
    summary = evaluate(results, bench, extractors, {"clip": real}, None, chosen(SKIPPED, world=True))
    row: dict[str, Any] = {
        each["key"]: {key: each[key] for key in ("value", "low", "high")} for each in summary["metrics"]
    }
    paths = [result_path(results, name) for name in bench.ids]
    features = np.concatenate(list(features_of(paths, extractors["clip"], 50, "features")))
    fids = resampled_fids(features, real)
    row["fid_clip"]["low"], row["fid_clip"]["high"] = interval_around(row["fid_clip"]["value"], fids)
    return Scored(row | {"results": results}, summary["per_case"], fids)


def resampled_fids(features: np.ndarray, real: Statistics, seed: int = 0) -> np.ndarray:
    """(FID_RESAMPLES,): FIDs of n pictures drawn anew from those of features (n,D), by the same draws for any."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(FID_RESAMPLES):
        some = Statistics()
        some.add(features[rng.integers(len(features), size=len(features))])
        values.append(frechet_distance(some.mean, some.covariance, real.mean, real.covariance))
    return np.array(values)


def interval_around(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of a FID, moved so that its mean is the value: drawing anew from few pictures makes every
    FID larger by about the same."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - resampled.mean() + value
    return float(low), float(high)


# ------------------------------------------------------------------------------------------ table


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Name of a row -> its scores, as a table in Markdown; ± is half the width of the interval."""
    return "\n".join(_lines(rows))


def _lines(rows: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    yield "| | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, scores in rows.items():
        yield f"| {name} | " + " | ".join(_cell(key, scores[key]) for key in COLUMNS) + " |"


def _cell(key: str, score: dict[str, float]) -> str:
    digits = 1 if key in ("colour_error", "clip_score") else 2
    half = (score["high"] - score["low"]) / 2
    return f"{score['value']:.{digits}f} ± {half:.{digits}f}"


def read_rows(path: Path) -> dict[str, Any]:
    """What write_rows wrote, folders of results as paths. Raises UserError."""
    try:
        rows = json.loads(path.read_text())
        table(rows)
        for row in rows.values():
            row["results"] = path.parent / row["results"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds no rows of the table ({error!r}); name one that mini_table.py wrote") from error
    return rows


def write_rows(path: Path, rows: dict[str, Any]) -> None:
    """As JSON. rows: label -> scores by metric, and "results", the folder of the edits, kept relative to the file."""
    relative = {label: row | {"results": os.path.relpath(row["results"], path.parent)} for label, row in rows.items()}
    with staging(path.parent) as temporary:
        (temporary / path.name).write_text(json.dumps(relative, indent=1) + "\n")
