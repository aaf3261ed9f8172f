"""How well an edit keeps the background.

image, source (3,H,W) in [0,1]; keep (1,H,W), 1 = keep, 0 = painted."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

MAX_PSNR = 100.0  # dB, of a background that is equal to the bit

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
