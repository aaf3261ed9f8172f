"""Where a position is in its box, so that the attention of a detail path finds the same part of the object at once:
a query's place in the region that is painted, a key's in its reference.

| variable | symbol                                                                                             |
|----------|----------------------------------------------------------------------------------------------------|
| place    | (u, v), row and column from the middle of the box, in halves of its sides                          |
| fourier  | sin and cos of pi/2 2^k u and of pi/2 2^k v (Vaswani et al. 2017, section 3.5), k < FREQUENCIES     |

Queries and keys get a learned linear map of these each. The two maps are equal at first, so that the inner product of a
query's and a key's is about a sum of cos(pi/2 2^k (u - u')): largest at equal places."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, layers_of
from ldm.modules.diffusionmodules.util import Upsample

FREQUENCIES = 3
FOURIER_WIDTH = 4 * FREQUENCIES
FARTHEST = 2.0  # places farther from the middle count as here


def fourier(places: Tensor) -> Tensor:
    """places (..., 2) -> (..., FOURIER_WIDTH)."""
    rates = math.pi / 2 * 2.0 ** torch.arange(FREQUENCIES, device=places.device)
    angles = (places[..., None] * rates).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def places_in_reference(side: int) -> Tensor:
    """Places (side*side, 2) of a square grid of keys: -1 to 1."""
    middles = (torch.arange(side) * 2 + 1) / side - 1
    return torch.cartesian_prod(middles, middles)


def places_in_region(keep: Tensor, stride: int) -> Tensor:
    """keep (n,1,h,w), 1 = keep -> places (n,h/stride,w/stride,2), -1 to 1 inside the painted region's box."""
    painted = keep[:, 0] < 0.5
    rows, columns = (_along(painted.any(dim=dim), stride) for dim in (2, 1))
    height, width = rows.shape[1], columns.shape[1]
    return torch.stack(
        [rows[:, :, None].expand(-1, height, width), columns[:, None].expand(-1, height, width)], dim=-1
    ).clamp(-FARTHEST, FARTHEST)


def _along(painted: Tensor, stride: int) -> Tensor:
    """painted (n,N) -> (n,N/stride), places along one side; where nothing is painted, in all of it."""
    length = painted.shape[1]
    first = painted.int().argmax(dim=1)
    last = length - painted.flip(1).int().argmax(dim=1)
    middles = (torch.arange(length // stride, device=painted.device) + 0.5) * stride
    return (2 * middles - (first + last)[:, None]) / (last - first)[:, None]


def strides(unet: UNetModel) -> list[int]:
    """The side, in pixels of the latent, of a position in each transformer block, in the order in which they run."""
    stride, found = 1, []
    for module in layers_of(unet, nn.Module):
        if isinstance(module, Downsample):
            stride *= 2
        elif isinstance(module, Upsample):
            stride //= 2
        elif isinstance(module, BasicTransformerBlock):
            found.append(stride)
    return found
