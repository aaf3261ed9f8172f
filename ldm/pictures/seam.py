"""Whether a painted region's edge shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SEAM_RADIUS = 8  # px: an edge is compared with its surroundings up to this distance


def seam(image: Tensor, keep: Tensor) -> float | None:
    """How steep the picture (3,H,W), in [0,1], is across the edge of the region, where keep (1,H,W) is 0, relative to
    its surroundings.

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
