"""Regions with more pixels than the model takes: a plain edit, which is enlarged, against overlapping windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import cv2
import numpy as np
from PIL import Image

from ldm.evaluation.features import Extractor
from ldm.miniworld.crops import labels_of
from ldm.miniworld.neighbours import Case, Scores
from ldm.miniworld.scores import identity_scores
from ldm.pipeline import PaintByExample

TIMES = 2  # as many pixels in a row as the model takes
SAMPLING = {"sampler": "dpm++", "steps": 12, "progress": False}
Paint = Callable[[Case, int], Image.Image]


def measure_windows(
    edit: PaintByExample, oracle: Extractor, cases: Sequence[Case]
) -> Iterator[tuple[str, Scores, list[Image.Image]]]:
    """Of every way: identity in the region, as the oracle sees it; the detail there; seconds of an edit."""

    def plain(case: Case, seed: int) -> Image.Image:
        return edit(case.photo, case.mask, case.reference, seed=seed, **SAMPLING)

    def windows(case: Case, seed: int) -> Image.Image:
        return edit(case.photo, case.mask, case.reference, seed=seed, windows=True, **SAMPLING)

    def refined(case: Case, seed: int) -> Image.Image:
        first = plain(case, seed)
        return edit(first, case.mask, case.reference, seed=seed, windows=True, strength=0.3, **SAMPLING)

    def unedited(case: Case, seed: int) -> Image.Image:
        return case.photo

    ways: dict[str, Paint] = {
        "photo": unedited,
        "plain": plain,
        "`--windows`": windows,
        "plain, then `--windows --strength 0.3`": refined,
    }
    labels = [labels_of(asdict(case.new)) for case in cases]
    assert oracle.prepare is not None
    for name, paint in ways.items():
        painted, seconds = [], []
        for seed, case in enumerate(cases):
            begin = time.perf_counter()
            painted.append(paint(case, seed))
            seconds.append(time.perf_counter() - begin)
        regions = [picture.crop(case.box) for case, picture in zip(cases, painted, strict=True)]
        scores = identity_scores(oracle([oracle.prepare(region) for region in regions]), labels)
        found = {key.replace("_", " "): values.numpy() for key, values in scores.items()}
        yield name, found | {"detail": np.array([*map(detail, regions)]), "seconds": np.round(seconds, 2)}, painted


def detail(picture: Image.Image) -> float:
    """The mean absolute Laplacian in grey levels: how much changes from pixel to pixel that is no gradient."""
    return float(np.abs(cv2.Laplacian(np.asarray(picture.convert("L"), np.float32), cv2.CV_32F)).mean())
