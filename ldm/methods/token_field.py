"""Several objects at once: a field of tokens, which differ from place to place.

With one key, the softmax of cross-attention is 1 and what it adds at a position p is W_o W_v c, whatever is at p. So c
may be another at every position, at no cost: c(p) = sum_k share_k(p) c_k, where share_k is 1 inside region k and falls
to 0 around it. SpaText, GLIGEN's boxes and MultiDiffusion's regions do this by other means. ldm.fast.unet.FastUNet
adds the field; here its shares are made, and what else regions may have of their own (layers, as in Collage Diffusion,
Sarukkai et al. 2023, arXiv 2303.00262): a scale, which apply_guidance takes for each position, and a strength."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.denoiser import blended_eps
from ldm.models.diffusion.sampling import Eps
from ldm.models.diffusion.schedule import NoiseSchedule

SOFTNESS = 1  # positions of the latent to either side of a border over which one token gives way to the next


def shares_of_regions(masks: Tensor, size: tuple[int, int], softness: int = SOFTNESS) -> Tensor:
    """How much each position of the latent sees of each region's token.

    masks (K,H,W) bool, true in the region, none of them empty; size: (h,w) of the latent -> (K,h,w), summing to 1.
    Where regions overlap, the last of them has it, as when they are painted one after the other. Around the regions a
    position belongs to the nearest."""
    count = len(masks)
    outside = [cv2.distanceTransform((~mask).numpy().astype(np.uint8), cv2.DIST_L2, 5) for mask in masks]
    owner = torch.from_numpy(count - 1 - np.stack(outside[::-1]).argmin(axis=0))  # argmin is the first of equals
    shares = F.one_hot(owner, count).movedim(-1, 0).float()
    shares = F.adaptive_avg_pool2d(shares, size)
    if softness:
        shares = F.pad(shares[None], (softness,) * 4, mode="replicate")
        shares = F.avg_pool2d(shares, 2 * softness + 1, stride=1)[0]
    return shares


def held_eps(eps: Eps, source: Tensor, strength: Tensor, schedule: NoiseSchedule) -> Eps:
    """Each position follows the photo until the timesteps below its own strength * T, at which SDEdit would begin.

    source (B,4,h,w): x_0 of the photo; strength (B,1,h,w): from 0, the photo stays, to 1, everything is new."""

    def held(x: Tensor, t: int) -> Tensor:
        keep = (t >= strength * schedule.num_timesteps).float()
        return blended_eps(eps, source, keep, schedule)(x, t)

    return held
