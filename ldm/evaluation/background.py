"""What an edit did to the rest of the picture, and whether its edge shows.

image, source (3,H,W) in [0,1]; keep (1,H,W), 1 where nothing was to be painted."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BEST_PSNR = 100.0  # dB, of a background that is the same to the bit
NEAR = 8  # pixels on both sides of an edge that it is compared with


def with_source_region(image: Any, source: Any, keep: Any) -> Any:
    """The image with the source in its painted region: only the background differs. Tensors or arrays."""
    return image * keep + source * (1 - keep)


def background_psnr(image: Tensor, source: Tensor, keep: Tensor) -> float:
    """Peak signal to noise ratio in dB over the kept pixels, at most 100."""
    assert keep.any(), "nothing was to be kept"
    error = ((image - source) ** 2 * keep).sum().double() / (keep.sum() * len(image))
    return min(BEST_PSNR, -10 * torch.log10(error).item()) if error > 0 else BEST_PSNR


def background_ssim(image: Tensor, source: Tensor, keep: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), its map averaged over the kept pixels; -1 to 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    _, map_ = ssim(with_source_region(image, source, keep)[None], source[None], data_range=1.0, return_full_image=True)
    return ((map_[0] * keep).sum() / (keep.sum() * len(image))).item()


def seam(image: Tensor, keep: Tensor) -> float | None:
    """How much steeper the picture is across the region's edge than within 8 pixels of it: the mean difference of
    neighbours of which one is painted and one kept, over that of the others nearby, one grey level added to both.
    1: the edge does not show; 2: twice as steep. None where the region has no edge."""
    assert image.is_floating_point() and image.shape[1:] == keep.shape[1:] and len(keep) == 1, (image.shape, keep.shape)
    across, near = [], []
    for dim in (-1, -2):
        a, b = keep.narrow(dim, 1, keep.shape[dim] - 1), keep.narrow(dim, 0, keep.shape[dim] - 1)
        edge = (a != b).float()
        around = F.max_pool2d(edge[None], 2 * NEAR + 1, stride=1, padding=NEAR)[0]
        step = image.diff(dim=dim).abs().mean(0, keepdim=True)
        across.append(step[edge > 0])
        near.append(step[(around > 0) & (edge == 0)])
    across, near = torch.cat(across), torch.cat(near)
    if not len(across) or not len(near):
        return None
    level = 1 / 255
    return ((across.mean() + level) / (near.mean() + level)).item()
