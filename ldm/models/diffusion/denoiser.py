"""From the UNet to the eps(x, t) that a sampler takes: concatenation, classifier-free guidance, blending."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.sampling import Eps, eps_from_x0
from ldm.models.diffusion.schedule import NoiseSchedule

# (inpaint (b,5,h,w), contexts (B,M,D)) -> an eps(x, t) that takes x (b,4,h,w) and returns (B,4,h,w)
Denoiser = Callable[[Tensor, Tensor], Eps]


def make_denoiser(apply_model: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Denoiser:
    """apply_model: (x (b,9,h,w), t (b,), contexts (B,M,D)) -> eps (B,4,h,w), as LatentDiffusion has it."""

    def denoiser(inpaint: Tensor, contexts: Tensor) -> Eps:
        def eps(x: Tensor, t: int) -> Tensor:
            return apply_model(torch.cat([x, inpaint], dim=1), torch.full(x.shape[:1], t, device=x.device), contexts)

        return eps

    return denoiser


def apply_guidance(both: Tensor, scale: float | Tensor) -> Tensor:
    """eps(x, v) + s (eps(x, c) - eps(x, v)) (Ho & Salimans 2021; Yang et al. 2022, equation 6).

    | variable | symbol                                                  |
    |----------|---------------------------------------------------------|
    | both     | eps(x, v), then eps(x, c), in one batch, (2B,4,h,w)     |
    | scale    | s, a number or (B,1,h,w)                                |
    """
    e_uncond, e_cond = both.chunk(2)
    return e_uncond + scale * (e_cond - e_uncond)


def guided_eps(
    denoiser: Denoiser,
    inpaint: Tensor,
    context: Tensor,
    uncond: Tensor | None = None,
    scale: float | Tensor = 1.0,
    interval: tuple[int, int] | None = None,
) -> Eps:
    """eps(x, t) with classifier-free guidance, which apply_guidance computes from both branches.

    inpaint (B,5,h,w): of inpaint_channels; context: c (B,M,D); uncond: v (1 or B,M,D); scale: s, where 1 means no
    guidance, or (B,1,h,w), one for each position. interval: first and last timestep with guidance (Kynkäänniemi et al.
    2024); None: all timesteps.

    Without guidance, or without v, only the branch of c is evaluated. Otherwise both branches are one batch, v first:
    the UNet gets x with batch B and contexts with batch 2B, and runs the layers that both share only once."""
    eps_cond = denoiser(inpaint, context)
    if uncond is None or (not isinstance(scale, Tensor) and scale == 1.0):
        return eps_cond
    eps_both = denoiser(inpaint, torch.cat([uncond.expand(context.shape[0], -1, -1), context]))
    first, last = interval or (0, math.inf)

    def eps(x: Tensor, t: int) -> Tensor:
        if first <= t <= last:
            return apply_guidance(eps_both(x, t), scale)
        return eps_cond(x, t)

    return eps


def blended_eps(eps: Eps, source: Tensor, keep: Tensor, schedule: NoiseSchedule) -> Eps:
    """Blended Latent Diffusion (Avrahami et al. 2023): in every step the noised source replaces what the mask keeps.

    source (B,4,h,w): x_0 of the photo; keep (B,1,h,w): positions of 1 are kept, all others painted. Instead of x, its
    eps is replaced by the noise between x and the source. So with every sampler the kept part of x stays sqrt(abar) x_0
    + sqrt(1 - abar) noise, with the same noise in every step."""
    kept = keep == 1

    def blended(x: Tensor, t: int) -> Tensor:
        abar = float(schedule.alphas_cumprod[t])
        return torch.where(kept, eps_from_x0(x, source, abar), eps(x, t))

    return blended
