"""The small world's figures, from weights alone: what its autoencoder and its CLIP can do, and how edits score."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from ldm.conventions import image_to_tensor, reference_to_tensor
from ldm.data.miniworld import COLOURS, PATTERNS, SHAPES, Identity, caption, caption_tokens
from ldm.data.object_crops import bench_identities
from ldm.data.test_bench_dataset import COCOImageDataset, case_path, result_path
from ldm.edit_bench import agree, edit_cases
from ldm.evaluation.benchmark import LEVEL, chosen, evaluate, identity_scores
from ldm.evaluation.clip_score import bounding_box
from ldm.evaluation.features import Extractor
from ldm.evaluation.fid import Statistics, frechet_distance
from ldm.evaluation.folder import features_of, real_statistics
from ldm.evaluation.quality import Mixture
from ldm.pipeline import PaintByExample
from ldm.util import UserError, staging

SKIPPED = ("fid_inception", "kid", "dino", "lpips", "psnr", "ssim")
COLUMNS = {  # metric -> head of its column
    "shape": "shape",
    "pattern": "pattern",
    "colour_error": "colour error",
    "clip_score": "CLIP score",
    "fid_clip": "FID",
    "qs": "QS",
    "copy_paste": "copy-paste",
    "seam": "seam",
}
RESAMPLES = 200  # of the bootstrap of FID


# ------------------------------------------------------------------------------------------ parts


def reconstruction_psnr(model: Any, bench: COCOImageDataset, batch_size: int = 50) -> np.ndarray:
    """(N,) dB: each photo of the benchmark through the autoencoder, its posterior's mean."""
    values = []
    for start in range(0, len(bench), batch_size):
        images = [image_to_tensor(bench.pictures(i)[0]) for i in range(start, min(start + batch_size, len(bench)))]
        with torch.no_grad():
            image = torch.stack(images)
            z = model.encode_first_stage(image).mode()
            error = (model.first_stage_model.decode(z).clamp(-1, 1) - image).square().mean(dim=(1, 2, 3))
        values.append(-10 * torch.log10(error / 4))
    return torch.cat(values).numpy()


@torch.no_grad()
def zero_shot(clip: CLIPModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """(B,3,S,S), CLIP-normalised -> number of the shape (B,) and of the pattern (B,) whose captions are nearest, on
    average over the other attribute and several pairs of colours."""
    colours = list(COLOURS.values())
    pairs = [(colours[i], colours[(i + 7) % len(colours)]) for i in range(0, len(colours), 3)]
    texts = [[[caption(Identity(s, p, *pair)) for pair in pairs] for p in PATTERNS] for s in SHAPES]
    tokens = torch.from_numpy(np.array([[[caption_tokens(text) for text in row] for row in rows] for rows in texts]))
    told = clip.text_projection(clip.text_model(input_ids=tokens.flatten(0, 2)).pooler_output)
    told = F.normalize(told, dim=-1).unflatten(0, tokens.shape[:3])
    seen = F.normalize(clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output), dim=-1)
    return (seen @ told.mean(dim=(1, 2)).T).argmax(1), (seen @ told.mean(dim=(0, 2)).T).argmax(1)


def zero_shot_accuracy(clip: CLIPModel, bench: COCOImageDataset) -> tuple[float, float]:
    """Of shape and of pattern, over the benchmark's references, whose pairs of the two training has not shown."""
    identities = bench_identities(bench.root)
    right = []
    for i, name in enumerate(bench.ids):
        image = reference_to_tensor(bench.pictures(i)[2], clip.config.vision_config.image_size)[None]
        shape, pattern = zero_shot(clip, image)
        right.append((shape[0] == identities[name]["shape"], pattern[0] == identities[name]["pattern"]))
    return tuple(np.mean(right, axis=0).tolist())


def oracle_on_real(oracle: Extractor, bench: COCOImageDataset) -> dict[str, float]:
    """The oracle's ceiling: shape, pattern and colour error of the photos' own objects in the region."""
    identities = bench_identities(bench.root, "replaced")
    regions = []
    for i in range(len(bench)):
        photo, mask, _ = bench.pictures(i)
        r0, r1, c0, c1 = bounding_box(np.asarray(mask))
        regions.append(oracle.prepare(photo.crop((c0, r0, c1, r1))))
    scores = identity_scores(oracle(regions), [identities[name] for name in bench.ids])
    return {key: float(value.mean()) for key, value in scores.items()}


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
            r0, r1, c0, c1 = bounding_box(np.asarray(mask))
            photo.paste(reference.resize((c1 - c0, r1 - r0), Image.Resampling.BILINEAR), (c0, r0))
            photo.save(result_path(temporary, name))


def edited(
    edit: PaintByExample,
    bench: COCOImageDataset,
    outdir: Path,
    settings: dict[str, Any],
    seed: int,
    batch_size: int,
    **sampling: Any,
) -> None:
    """Edits of all cases, those that are not there yet. settings: what they are made with, checked by `agree`."""
    agree(outdir / "settings.json", {**settings, **sampling, "seed": seed, "cases": bench.digest()})
    results = outdir / "results"
    todo = [i for i, name in enumerate(bench.ids) if not result_path(results, name).exists()]
    problems = edit_cases(edit, bench, todo, results, seed, batch_size, **sampling)
    assert not problems, problems[0]


def scored(
    results: Path,
    bench: COCOImageDataset,
    extractors: dict[str, Extractor],
    real: Statistics,
    mixture: Mixture,
) -> dict[str, dict[str, float]]:
    """Metric -> value, low, high, of a folder of results."""
    metrics = chosen(SKIPPED, world=True)
    summary = evaluate(results, bench, extractors, {"clip": real}, mixture, metrics)
    rows = {row["key"]: {key: row[key] for key in ("value", "low", "high")} for row in summary["metrics"]}
    paths = [result_path(results, name) for name in bench.ids]
    features = np.concatenate(list(features_of(paths, extractors["clip"], 50, "features")))
    rows["fid_clip"]["low"], rows["fid_clip"]["high"] = fid_interval(features, real, rows["fid_clip"]["value"])
    return rows


def fid_interval(features: np.ndarray, real: Statistics, value: float, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of a FID, moved so that its mean is the value: drawing anew from few pictures makes every
    FID larger by about the same."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        some = Statistics()
        some.add(features[rng.integers(len(features), size=len(features))])
        values.append(frechet_distance(some.mean, some.covariance, real.mean, real.covariance))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.mean(values) + value
    return float(low), float(high)


def real_pictures(bench: Path, clip: Extractor) -> tuple[Statistics, Mixture]:
    """Statistics of the benchmark's real pictures, and the mixture for QS, made where it is not there."""
    place, path = bench / "test2017_square", bench / "quality_gmm.npz"
    real = real_statistics(place, clip, 50)
    if not path.exists():
        Mixture.fit(np.array(real.rows), name=clip.identity).write(path)
    mixture = Mixture.read(path)
    mixture.check(clip.identity)
    return real, mixture


# ------------------------------------------------------------------------------------------ table


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Name of a row -> its scores, as a table in Markdown with intervals."""
    return "\n".join(_lines(rows))


def _lines(rows: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    yield "| | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, scores in rows.items():
        yield f"| {name} | " + " | ".join(_cell(key, scores[key]) for key in COLUMNS) + " |"


def _cell(key: str, score: dict[str, float]) -> str:
    digits = 1 if key in ("colour_error", "clip_score", "qs") else 2
    half = (score["high"] - score["low"]) / 2
    return f"{score['value']:.{digits}f} ± {half:.{digits}f}"


def read_rows(path: Path) -> dict[str, Any]:
    """What write_rows wrote. Raises UserError."""
    try:
        rows = json.loads(path.read_text())
        table(rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds no rows of the table ({error!r}); name one that mini_table.py wrote") from error
    return rows


def write_rows(path: Path, rows: dict[str, Any]) -> None:
    """As JSON."""
    with staging(path.parent) as temporary:
        (temporary / path.name).write_text(json.dumps(rows, indent=1) + "\n")
