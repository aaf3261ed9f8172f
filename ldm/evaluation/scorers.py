"""Scorers: each computes one or more metrics from the pictures of a benchmark's cases.

| scorer | metrics | network |
|---|---|---|
| ClipFeatures | fid_clip, qs | clip |
| ClipScore | clip_score | clip |
| InceptionFeatures | fid_inception, kid | inception |
| DinoSimilarity | dino | dino |
| BackgroundDistance | lpips | lpips |
| PixelScores | psnr, ssim, seam, copy_paste | |

`evaluate` also takes other scorers: any class with the members of Scorer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ldm.conventions import mask_to_tensor, pixels_to_tensor
from ldm.evaluation.background import background_psnr, background_ssim, with_source_region
from ldm.evaluation.clip_score import bounding_box, clip_reference, clip_region, copy_paste, similarity
from ldm.evaluation.features import Extractor, pixels
from ldm.evaluation.fid import Statistics, frechet_distance, kernel_distance, rows_to_keep
from ldm.evaluation.metrics import Metric
from ldm.evaluation.quality import Mixture, quality_score
from ldm.pictures.seam import seam


@dataclass(frozen=True)
class Case:
    """A case's pictures. number: its place in the benchmark; source, reference, result: RGB; mask: L, 255 = painted.
    mask and result have the source's size."""

    number: int
    id: str
    source: Image.Image
    mask: Image.Image
    reference: Image.Image
    result: Image.Image

    @cached_property
    def keep(self) -> Tensor:
        """(1,H,W), 1 = keep."""
        return mask_to_tensor(self.mask)

    @cached_property
    def region(self) -> Image.Image | None:
        """The result's part in the mask's bounding box. None: the mask is empty."""
        box = bounding_box(np.asarray(self.mask))
        if box is None:
            return None
        r0, r1, c0, c1 = box
        return self.result.crop((c0, r0, c1, r1))


class Scorer(Protocol):
    """Computes the metrics `keys`. It gathers statistics over one evaluation: make a new one for the next.

    extractor: the network whose weights the summary records, or None."""

    keys: tuple[str, ...]
    extractor: Extractor | None

    def prepare(self, case: Case) -> Any:
        """A case's input for `score`: arrays or numbers, since other processes prepare it. None: the case has no
        score."""

    def score(self, inputs: Sequence[Any]) -> Mapping[str, Sequence[float | None]]:
        """The inputs of a batch of cases -> metric -> a value per case, without metrics of sets."""

    def distances(self) -> Mapping[str, float]:
        """Metric of sets -> its value over all scored cases."""


class ClipFeatures:
    """FID and QS as the paper computed them. real: statistics of real pictures, for FID; mixture: for QS."""

    def __init__(self, extractor: Extractor, real: Statistics | None, mixture: Mixture | None):
        self.extractor, self.real, self.mixture = extractor, real, mixture
        self.keys = ("fid_clip",) * (real is not None) + ("qs",) * (mixture is not None)
        self.statistics = Statistics()

    def prepare(self, case: Case) -> np.ndarray:
        return self.extractor.prepare(case.result)

    def score(self, inputs: Sequence[np.ndarray]) -> dict[str, Sequence[float]]:
        features = self.extractor(inputs).numpy()
        if self.real is not None:
            self.statistics.add(features)
        return {} if self.mixture is None else {"qs": quality_score(self.mixture.log_likelihood(features))}

    def distances(self) -> dict[str, float]:
        return {} if self.real is None else {"fid_clip": _frechet(self.statistics, self.real)}


class InceptionFeatures:
    """FID and KID in Inception's features, if they are among `keys`. real: statistics of real pictures; count: the
    number of the benchmark's cases."""

    def __init__(self, keys: Collection[str], extractor: Extractor, real: Statistics, count: int):
        self.keys = tuple(key for key in ("fid_inception", "kid") if key in keys)
        self.extractor, self.real, self.rows = extractor, real, rows_to_keep(count)
        self.statistics = Statistics()

    def prepare(self, case: Case) -> tuple[np.ndarray, bool]:
        return pixels(case.result), case.number in self.rows

    def score(self, inputs: Sequence[tuple[np.ndarray, bool]]) -> dict[str, Sequence[float]]:
        images, kept = zip(*inputs, strict=True)
        self.statistics.add(self.extractor(images).numpy(), np.array(kept))
        return {}

    def distances(self) -> dict[str, float]:
        values = {}
        if "fid_inception" in self.keys:
            values["fid_inception"] = _frechet(self.statistics, self.real)
        if "kid" in self.keys:
            values["kid"] = 1000 * kernel_distance(np.array(self.real.rows), np.array(self.statistics.rows))
        return values


def _frechet(a: Statistics, b: Statistics) -> float:
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


class ClipScore:
    """The paper's CLIP score, of the region that the published code cut out."""

    keys = ("clip_score",)

    def __init__(self, extractor: Extractor):
        self.extractor = extractor

    def prepare(self, case: Case) -> tuple[np.ndarray, np.ndarray] | None:
        region = clip_region(case.result, np.asarray(case.mask), self.extractor.size)
        return None if region is None else (region, clip_reference(case.reference, self.extractor.size))

    def score(self, inputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Sequence[float]]:
        regions, references = zip(*inputs, strict=True)
        return {"clip_score": (similarity(self.extractor(regions), self.extractor(references)) * 100.0).tolist()}

    def distances(self) -> dict[str, float]:
        return {}


class DinoSimilarity:
    """The cosine of DINO's features of the region and of the reference."""

    keys = ("dino",)

    def __init__(self, extractor: Extractor):
        self.extractor = extractor

    def prepare(self, case: Case) -> tuple[np.ndarray, np.ndarray] | None:
        if case.region is None:
            return None
        return self.extractor.prepare(case.region), self.extractor.prepare(case.reference)

    def score(self, inputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Sequence[float]]:
        regions, references = zip(*inputs, strict=True)
        return {"dino": similarity(self.extractor(regions), self.extractor(references)).tolist()}

    def distances(self) -> dict[str, float]:
        return {}


class BackgroundDistance:
    """LPIPS between the result and the source, with the source's own pixels in the painted region."""

    keys = ("lpips",)

    def __init__(self, extractor: Extractor):
        self.extractor = extractor

    def prepare(self, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        if not case.keep.any():  # the mask covers the whole picture
            return None
        return pixels(case.result), pixels(case.source), case.keep.numpy()

    def score(self, inputs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Sequence[float]]:
        signed = [(_signed(image), _signed(source), keep) for image, source, keep in inputs]
        backgrounds = [with_source_region(*each) for each in signed]
        distances = self.extractor(backgrounds, [source for _, source, _ in signed])
        return {"lpips": distances.flatten().tolist()}

    def distances(self) -> dict[str, float]:
        return {}


def _signed(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1,1]."""
    return image / np.float32(127.5) - 1


class PixelScores:
    """The metrics without a network, if they are among `keys`; computed by the processes that load the pictures."""

    extractor = None

    def __init__(self, keys: Collection[str]):
        self.keys = tuple(key for key in ("psnr", "ssim", "seam", "copy_paste") if key in keys)

    def prepare(self, case: Case) -> dict[str, float | None]:
        image, source = pixels_to_tensor(case.result), pixels_to_tensor(case.source)
        background = bool(case.keep.any())  # False if the mask covers the whole picture
        values: dict[str, float | None] = dict.fromkeys(self.keys)
        if "psnr" in self.keys and background:
            values["psnr"] = background_psnr(image, source, case.keep)
        if "ssim" in self.keys and background:
            values["ssim"] = background_ssim(image, source, case.keep)
        if "seam" in self.keys:
            values["seam"] = seam(image, case.keep)
        if "copy_paste" in self.keys and case.region is not None:
            values["copy_paste"] = copy_paste(case.region, case.reference)
        return values

    def score(self, inputs: Sequence[dict[str, float | None]]) -> dict[str, Sequence[float | None]]:
        return {key: [values[key] for values in inputs] for key in self.keys}

    def distances(self) -> dict[str, float]:
        return {}


def make_scorers(
    metrics: Collection[Metric],
    extractors: Mapping[str, Extractor],
    real: Mapping[str, Statistics],
    mixture: Mixture | None,
    count: int,
) -> list[Scorer]:
    """The scorers of this module that the metrics need; other metrics are ignored.

    extractors, by kind: those that the metrics need; real: statistics of real pictures for "clip" and "inception";
    mixture: for QS; count: the benchmark's cases."""
    keys = {metric.key for metric in metrics}
    scorers: list[Scorer] = []
    if keys & {"fid_clip", "qs"}:
        statistics = real["clip"] if "fid_clip" in keys else None
        scorers.append(ClipFeatures(extractors["clip"], statistics, mixture if "qs" in keys else None))
    if "clip_score" in keys:
        scorers.append(ClipScore(extractors["clip"]))
    if inception_keys := keys & {"fid_inception", "kid"}:
        scorers.append(InceptionFeatures(inception_keys, extractors["inception"], real["inception"], count))
    if "dino" in keys:
        scorers.append(DinoSimilarity(extractors["dino"]))
    if "lpips" in keys:
        scorers.append(BackgroundDistance(extractors["lpips"]))
    if pixel_keys := keys & {"psnr", "ssim", "seam", "copy_paste"}:
        scorers.append(PixelScores(pixel_keys))
    return scorers
