"""How well an edit keeps the background, and whether the region's edge shows.

image, source (3,H,W) in [0,1]; keep (1,H,W), 1 = keep, 0 = painted."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PSNR = 100.0  # dB, of a background that is equal to the bit
SEAM_RADIUS = 8  # px: an edge is compared with its surroundings up to this distance

Array = TypeVar("Array", Tensor, np.ndarray)


def with_source_region(image: Array, source: Array, keep: Array) -> Array:
    """The image with the source's pixels in the painted region, so that only the background can differ."""
    return image * keep + source * (1 - keep)


def background_psnr(image: Tensor, source: Tensor, keep: Tensor) -> float:
    """Peak signal to noise ratio in dB over the kept pixels, at most 100."""
    assert keep.any(), "the mask covers the whole picture"
    error = ((image - source) ** 2 * keep).sum().double() / (keep.sum() * len(image))
    return min(MAX_PSNR, -10 * torch.log10(error).item()) if error > 0 else MAX_PSNR


def background_ssim(image: Tensor, source: Tensor, keep: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), the mean of its map over the kept pixels; -1 to 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    _, map_ = ssim(with_source_region(image, source, keep)[None], source[None], data_range=1.0, return_full_image=True)
    return ((map_[0] * keep).sum() / (keep.sum() * len(image))).item()


def seam(image: Tensor, keep: Tensor) -> float | None:
    """How steep the picture is across the region's edge, relative to its surroundings.

    The mean difference of neighbouring pixels of which one is painted and one kept, divided by that of the other
    neighbours within SEAM_RADIUS of the edge; one grey level is added to both. 1: the edge does not show; 2: it is
    twice as steep. None: the region has no edge."""
    assert image.is_floating_point() and image.shape[1:] == keep.shape[1:] and len(keep) == 1, (image.shape, keep.shape)
    across, near = [], []
    for dim in (-1, -2):
        a, b = keep.narrow(dim, 1, keep.shape[dim] - 1), keep.narrow(dim, 0, keep.shape[dim] - 1)
        edge = (a != b).float()
        around = F.max_pool2d(edge[None], 2 * SEAM_RADIUS + 1, stride=1, padding=SEAM_RADIUS)[0]
        step = image.diff(dim=dim).abs().mean(0, keepdim=True)
        across.append(step[edge > 0])
        near.append(step[(around > 0) & (edge == 0)])
    across, near = torch.cat(across), torch.cat(near)
    if not len(across) or not len(near):
        return None
    level = 1 / 255
    return ((across.mean() + level) / (near.mean() + level)).item()
