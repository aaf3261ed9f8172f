"""Regions larger than the model's window: overlapping windows of the size that the model was made for, whose eps are
averaged in every step (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113).

| variable   | symbol                                                                                          |
|------------|-------------------------------------------------------------------------------------------------|
| window     | F_i, which cuts a rectangle out of the latent                                                   |
| weights    | F_i^-1(W_i) / sum_j F_j^-1(W_j), how much of each position comes from window i                  |

The paper averages what the sampler's step makes of each window (equation 5). That step is affine in eps, with the same
numbers in every window, so the average of eps gives the same, with every sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.fast.region import Rectangle
from ldm.models.diffusion.denoiser import Denoiser
from ldm.models.diffusion.sampling import Eps

MARGIN = 1 / 4  # least length of what the outer windows see around the region, in sides of a window
STRIDE = 1 / 2  # greatest distance between neighbouring windows, in sides of a window


def windows_over(paint: Tensor, side: int) -> list[Rectangle]:
    """Windows of side x side, less where the latent is smaller, over all that is painted.

    paint (B,1,h,w): true where one of the edits paints, somewhere at least. Windows that paint nothing are left out."""
    height, width = paint.shape[-2:]
    painted = paint.flatten(0, 1).any(dim=0)
    tops, lefts = (_starts(painted.any(dim=dim), side) for dim in (1, 0))
    rows, columns = min(side, height), min(side, width)
    windows = [Rectangle(top, top + rows, left, left + columns, width) for top in tops for left in lefts]
    return [window for window in windows if window.crop(paint).any()]


def _starts(painted: Tensor, side: int) -> list[int]:
    """Where the windows begin along one axis. painted (n,): true where there is anything to paint."""
    side = min(side, len(painted))
    positions, margin = painted.nonzero().flatten(), round(MARGIN * side)
    first = max(int(positions[0]) - margin, 0)
    last = min(int(positions[-1]) + 1 + margin, len(painted)) - side  # of the last window
    if last <= first:  # one window sees it all
        return [min(max((first + last) // 2, 0), len(painted) - side)]
    count = math.ceil((last - first) / (STRIDE * side)) + 1
    return torch.linspace(first, last, count).round().int().tolist()


def weights_of(windows: Sequence[Rectangle], size: tuple[int, int]) -> Tensor:
    """Weights that fall from a window's middle to its edges, so that none of them shows: (N,1,h,w), summing to 1 at the
    positions that windows see, 0 elsewhere; float64. size: (h,w) of the latent."""
    weights = torch.zeros(len(windows), 1, *size, dtype=torch.float64)
    for own, window in zip(weights, windows, strict=True):
        part = window.crop(own[None])
        rows, columns = (torch.arange(1, length + 1) for length in part.shape[-2:])
        part.copy_(torch.minimum(rows, rows.flip(0))[:, None] * torch.minimum(columns, columns.flip(0)))
    return weights / weights.sum(dim=0).clamp(min=1)  # the smallest weight is 1


def windowed(denoisers: Sequence[Denoiser], windows: Sequence[Rectangle], weights: Tensor) -> Denoiser:
    """One denoiser of the whole latent from those of its windows, with the same contexts in all of them. Where no
    window is, eps is 0."""

    def denoiser(inpaint: Tensor, contexts: Tensor) -> Eps:
        parts = [own(window.crop(inpaint), contexts) for own, window in zip(denoisers, windows, strict=True)]
        shares = [window.crop(own[None]) for own, window in zip(weights.to(inpaint), windows, strict=True)]

        def eps(x: Tensor, t: int) -> Tensor:
            mean = x.new_zeros(len(contexts), *x.shape[1:])
            for part, share, window in zip(parts, shares, windows, strict=True):
                window.crop(mean).add_(share * part(window.crop(x), t))
            return mean

        return eps

    return denoiser
