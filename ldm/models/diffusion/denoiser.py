"""From the UNet to the eps(x, t) that a sampler wants: concatenation and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.sampling import Eps


def guided_eps(
    apply_model: Callable[[Tensor, Tensor, Tensor], Tensor],
    inpaint: Tensor,
    context: Tensor,
    uncond: Tensor | None = None,
    scale: float = 1.0,
) -> Eps:
    """eps(x, t) = eps(x, v) + s (eps(x, c) - eps(x, v)) (Ho & Salimans 2021; Yang et al. 2022, equation 6).

    apply_model: (x (B,9,h,w), t (B,), contexts) -> eps; inpaint (B,5,h,w): of inpaint_channels; context: c (B,M,D);
    uncond: v (1 or B,M,D); scale: s. At s = 1, or without v, only c is evaluated. Otherwise both branches are one
    batch, v first, and the UNet computes what they share once: it gets x of batch B with contexts of batch 2B."""
    batch = context.shape[0]
    guided = uncond is not None and scale != 1.0
    contexts = torch.cat([uncond.expand(batch, -1, -1), context]) if guided else context

    def eps(x: Tensor, t: Tensor) -> Tensor:
        out = apply_model(torch.cat([x, inpaint], dim=1), t, contexts)
        if not guided:
            return out
        e_uncond, e_cond = out.chunk(2)
        return e_uncond + scale * (e_cond - e_uncond)

    return eps
