"""Best of N: of several seeds, painted by a quick preset, the one whose region is most like the reference and whose
edge shows least.

score = cos(E(region), E(reference)) - SEAM_WEIGHT max(0, seam - 1)

| variable | symbol                                                                                        |
|----------|-----------------------------------------------------------------------------------------------|
| judge    | E, features of CLIP's image tower, the model's own, or of DINOv2                              |
| region   | the picture in the box around the mask, as the model painted it                               |
| seam     | how steep it is across the region's edge, 1 where that does not show (ldm.pictures.seam)        |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.conventions import (
    mask_to_image,
    normalise_imagenet,
    pixels_to_tensor,
    reference_to_image,
    reference_to_tensor,
    tensor_to_image,
)
from ldm.editing.inputs import Inputs
from ldm.editing.options import Selection
from ldm.modules.encoders.dinov2 import dinov2_side, load_dinov2
from ldm.pictures.seam import seam

if TYPE_CHECKING:
    from ldm.editing.painter import Painter

SEAM_WEIGHT = 0.1  # of 0 to 1 in the small world, the largest that costs hardly any likeness (docs/likeness.md)

Judge = Callable[[Sequence[Image.Image]], Tensor]  # B pictures, RGB -> features (B,D)


@dataclass(frozen=True)
class Attempt:
    """A seed that was tried. likeness: cosine, -1 to 1, a mean over regions and references; seam: a mean over regions,
    1 where there is no edge."""

    seed: int
    likeness: float
    seam: float

    @property
    def score(self) -> float:
        return self.likeness - SEAM_WEIGHT * max(0.0, self.seam - 1)


@dataclass(frozen=True)
class Choice:
    """The seed that a picture is painted with, and those that were tried for it; empty if there was nothing to
    choose."""

    seed: int
    selection: Selection
    tried: tuple[Attempt, ...] = ()

    @classmethod
    def of(cls, tried: Sequence[Attempt], selection: Selection) -> Choice:
        """The best of them, of equal ones the first."""
        return cls(max(tried, key=lambda attempt: attempt.score).seed, selection, tuple(tried))

    @property
    def settings(self) -> dict[str, Any]:
        """What is written into the picture."""
        if not self.tried:
            return {"seed": self.seed}
        names = ("seed", "score", "likeness", "seam")
        tried = [{name: round(getattr(attempt, name), 4) for name in names} for attempt in self.tried]
        return {"seed": self.seed, **self.selection.settings, "tried": tried}


def rate(painted: Tensor, inputs: Inputs, judge: Judge) -> tuple[float, float]:
    """A painted window (3,H,W), about [-1,1], and what the model saw of it (B = 1) -> its likeness, of several regions
    the mean, and its seam."""
    keep, picture = inputs.mask[0], tensor_to_image(painted)
    boxes = [mask_to_image(each).getbbox() for each in _regions(keep, inputs.shares)]
    shown = [box for box in boxes if box]  # None: later regions cover it
    features = judge([*map(picture.crop, shown), *map(reference_to_image, inputs.reference)]).double()
    regions, references = features[: len(shown)], features[len(shown) :]
    counts = [len(references)] if inputs.shares is None else [len(each.learned) for each in inputs.conditions]
    own = [each for box, each in zip(boxes, references.split(counts), strict=True) if box]
    likeness = fmean(F.cosine_similarity(*pair).mean().item() for pair in zip(regions[:, None], own, strict=True))
    edge = seam(pixels_to_tensor(picture), keep)
    return likeness, 1.0 if edge is None else edge


def _regions(keep: Tensor, shares: Tensor | None) -> list[Tensor]:
    """keep (1,H,W), shares (1,K,h,w) or None for one region -> the mask (1,H,W), 1 = keep, of each region: where its
    share is the largest."""
    if shares is None:
        return [keep]
    owner = F.interpolate(shares, keep.shape[-2:], mode="bilinear").argmax(dim=1)
    return [torch.where(owner == k, keep, 1.0) for k in range(shares.shape[1])]


def attempt(seed: int, ratings: Sequence[tuple[float, float]]) -> Attempt:
    """ratings: of the picture's regions."""
    likenesses, seams = zip(*ratings, strict=True)
    return Attempt(seed, fmean(likenesses), fmean(seams))


# --------------------------------------------------------------------------------------------- judges


def load_judge(name: str, painter: Painter) -> Judge:
    """name: see Selection. Raises UserError: a folder without a DINOv2, no connection."""
    if name == "clip":
        return functools.partial(_clip_features, painter)
    network = load_dinov2("judge", name, "clip, dinov2, ")
    return functools.partial(_dinov2_features, network.to(painter.device))


@torch.no_grad()
def _clip_features(painter: Painter, pictures: Sequence[Image.Image]) -> Tensor:
    side = cast(int, painter.model.cond_stage_model.image_size)
    batch = torch.stack([reference_to_tensor(each, side) for each in pictures])
    return painter.networks.clip_features(batch.to(painter.device))


@torch.no_grad()
def _dinov2_features(network: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """The class token after the last norm (Oquab et al. 2023). Squashed, as references are, so that nothing of a region
    is cut off."""
    side = dinov2_side(network)
    resized = [each.resize((side, side), Image.Resampling.BICUBIC) for each in pictures]
    pixels = normalise_imagenet(torch.stack([pixels_to_tensor(each) for each in resized]))
    return network(pixel_values=pixels.to(network.device)).pooler_output
