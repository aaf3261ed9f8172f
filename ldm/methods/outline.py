"""Finding the outline of what an edit has to change, inside a rough region (DiffEdit, Couairon et al. 2023, arXiv
2210.11427, section 3.2): where the predictions for the reference and for the region's own crop differ.

| variable   | symbol                                                                       |
|------------|------------------------------------------------------------------------------|
| c_ref      | token of the reference (B,M,D)                                               |
| c_src      | token of the region's own crop, in the place of a caption of the photo       |
| source     | x_0 of the photo (B,4,h,w)                                                   |
| difference | mean of abs(eps(x_t, c_ref) - eps(x_t, c_src)) over channels and draws of noise |
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.conventions import resize_tensor
from ldm.models.diffusion.denoiser import Denoiser
from ldm.models.diffusion.schedule import NoiseSchedule

DRAWS = 10  # of noise
NOISE = 0.5  # of all timesteps: how noisy the photo is, as in the paper
CLIPPED = 0.9  # quantile of the region's differences, above which they count as equal
THRESHOLD = 0.5


@torch.no_grad()
def difference(
    denoiser: Denoiser, inpaint: Tensor, c_ref: Tensor, c_src: Tensor, source: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """inpaint (B,5,h,w) of the rough region -> (B,1,h,w) in [0,1], 0 outside the region.

    The noise is always the same, so that a region's outline does not depend on a seed."""
    t = int(NOISE * schedule.num_timesteps)
    abar = float(schedule.alphas_cumprod[t])
    eps = denoiser(inpaint, torch.cat([c_ref, c_src]))
    total = torch.zeros_like(source[:, :1])
    for number in range(DRAWS):
        noise = torch.randn(source.shape[1:], generator=torch.Generator().manual_seed(number)).to(source)
        e_ref, e_src = eps(abar**0.5 * source + (1.0 - abar) ** 0.5 * noise, t).chunk(2)
        total += (e_ref - e_src).abs().mean(dim=1, keepdim=True)
    paint = inpaint[:, -1:] < 1
    for each, inside in zip(total, paint, strict=True):
        each[~inside] = 0.0
        each /= each[inside].quantile(CLIPPED).clamp(min=1e-12)
    return total.clamp(max=1.0)


def narrowed(mask: Tensor, found: Tensor) -> Tensor:
    """mask (B,1,H,W), 1 = keep, and the difference inside it (B,1,h,w) -> the mask (B,1,H,W), which paints only where
    the difference is above THRESHOLD."""
    here = resize_tensor(found, tuple(mask.shape[-2:])) > THRESHOLD
    return torch.where(here, mask, torch.ones_like(mask))
