"""From the UNet to the eps(x, t) that a sampler wants: concatenation and classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.sampling import Eps, eps_from_x0
from ldm.models.diffusion.schedule import NoiseSchedule

# (inpaint (b,5,h,w), contexts (B,M,D)) -> eps of both, (b,4,h,w) to (B,4,h,w)
Denoiser = Callable[[Tensor, Tensor], Eps]


def make_denoiser(apply_model: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Denoiser:
    """apply_model: (x (b,9,h,w), t (b,), contexts (B,M,D)) -> eps (B,4,h,w), as LatentDiffusion has it."""

    def denoiser(inpaint: Tensor, contexts: Tensor) -> Eps:
        def eps(x: Tensor, t: int) -> Tensor:
            return apply_model(torch.cat([x, inpaint], dim=1), torch.full(x.shape[:1], t, device=x.device), contexts)

        return eps

    return denoiser


def apply_guidance(both: Tensor, scale: float) -> Tensor:
    """eps(x, v) + s (eps(x, c) - eps(x, v)) (Ho & Salimans 2021; Yang et al. 2022, equation 6).

    both (2B,4,h,w): eps with v, then with c -> (B,4,h,w)."""
    e_uncond, e_cond = both.chunk(2)
    return e_uncond + scale * (e_cond - e_uncond)


def guided_eps(
    denoiser: Denoiser,
    inpaint: Tensor,
    context: Tensor,
    uncond: Tensor | None = None,
    scale: float = 1.0,
    interval: tuple[int, int] | None = None,
) -> Eps:
    """eps(x, t) with guidance.

    inpaint (B,5,h,w): of inpaint_channels; context: c (B,M,D); uncond: v (1 or B,M,D); scale: s. At s = 1, or without
    v, only c is evaluated. Otherwise both branches are one batch, v first, and the UNet computes what they share once:
    it gets x of batch B with contexts of batch 2B. interval: the timesteps, first and last, between which there is
    guidance (Kynkäänniemi et al. 2024); elsewhere only c is evaluated. None: all."""
    alone = denoiser(inpaint, context)
    if uncond is None or scale == 1.0:
        return alone
    both = denoiser(inpaint, torch.cat([uncond.expand(context.shape[0], -1, -1), context]))
    first, last = interval or (0, math.inf)

    def eps(x: Tensor, t: int) -> Tensor:
        if not first <= t <= last:
            return alone(x, t)
        return apply_guidance(both(x, t), scale)

    return eps


def blended_eps(eps: Eps, source: Tensor, keep: Tensor, schedule: NoiseSchedule) -> Eps:
    """Blended Latent Diffusion (Avrahami et al. 2023): in every step the noised source stands where the mask keeps.

    source (B,4,h,w): x_0 of the photo; keep (B,1,h,w): 1 = keep, all else is painted. What is put in place is not x,
    but the noise that leads from x back to the source: so a sampler's x stays sqrt(abar) x_0 + sqrt(1 - abar) noise
    there, with one noise throughout, whatever the sampler."""
    kept = keep == 1

    def blended(x: Tensor, t: int) -> Tensor:
        abar = float(schedule.alphas_cumprod[t])
        return torch.where(kept, eps_from_x0(x, source, abar), eps(x, t))

    return blended
