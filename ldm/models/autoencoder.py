"""The first stage: pictures to latents and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.util import UserError

# Larger latents are processed in tiles of TILE x TILE latent pixels, four times the area of a published model's latent.
TILE, OVERLAP = 128, 32


class AutoencoderKL(nn.Module):
    """KL-regularised autoencoder (Rombach et al. 2022, appendix G) with downsampling factor `factor`.

    Parameters:
        ddconfig: in_channels, out_ch, ch (channels of the first level), ch_mult (one factor per level), num_res_blocks,
            z_channels. double_z must be true, attn_resolutions empty, dropout 0; resolution is not used.
        embed_dim: channels of the latent
        lossconfig, monitor: of published configs; accepted and not used, since first_stage.py trains autoencoders"""

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int, lossconfig: Any = None, monitor: str | None = None):
        super().__init__()
        dd = dict(ddconfig)
        dd.pop("resolution", None)
        for name, only in (("double_z", True), ("attn_resolutions", []), ("dropout", 0.0)):
            if (value := dd.pop(name, only)) != only:
                raise UserError(f"config: AutoencoderKL's {name} is {value}: use {only}, the only supported value")
        in_channels, out_ch = dd.pop("in_channels"), dd.pop("out_ch")
        self.encoder = Encoder(in_channels=in_channels, **dd)
        self.decoder = Decoder(out_ch=out_ch, **dd)
        self.quant_conv = nn.Conv2d(2 * dd["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, dd["z_channels"], 1)
        self.embed_dim = embed_dim
        self.factor = 2 ** (len(dd["ch_mult"]) - 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """(B,3,H,W) in [-1,1] -> posterior over (B,4,H/f,W/f)."""
        return DiagonalGaussianDistribution(self.moments(x))

    def moments(self, x: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> mean ++ log variance, (B,8,H/f,W/f)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """(B,4,h,w) -> (B,3,h*f,w*f), about [-1,1]."""
        return self.decoder(self.post_quant_conv(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> its reconstruction from the posterior's mean, (B,3,H,W)."""
        return self.decode(self.encode(x).mode())


def apply_in_tiles(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: float) -> Tensor:
    """Applies a function to tiles of x (B,C,h,w), one at a time to save memory, and blends the results linearly where
    tiles overlap -> (B,C',scale*h,scale*w). An x that is no larger than a tile is not split.

    function: (B,C,h',w') -> (B,C',scale*h',scale*w'); tile, overlap: side and overlap of tiles, in pixels of x."""
    sides = x.shape[-2:]
    if max(sides) <= tile:
        return function(x)
    starts = [[*range(0, max(n - tile, 0), tile - overlap), max(n - tile, 0)] for n in sides]

    def ramp(n: int) -> Tensor:  # weights along a tile's side, rising and falling over the overlap
        i = torch.arange(1, n + 1, device=x.device, dtype=torch.float32)
        return torch.minimum(i, i.flip(0)).clamp(max=overlap * scale)

    total = weights = None
    for top, left in itertools.product(*starts):
        result = function(x[..., top : top + tile, left : left + tile])
        height, width = result.shape[-2:]
        if total is None:
            total = result.new_zeros(*result.shape[:2], *(round(scale * n) for n in sides))
            weights = total.new_zeros(total.shape[-2:])
        weight = ramp(height)[:, None] * ramp(width)
        row, column = round(scale * top), round(scale * left)
        total[..., row : row + height, column : column + width] += weight * result
        weights[row : row + height, column : column + width] += weight
    return total / weights


def encode_in_tiles(first_stage: AutoencoderKL, x: Tensor) -> DiagonalGaussianDistribution:
    """first_stage.encode for pictures of any size."""
    f = first_stage.factor
    return DiagonalGaussianDistribution(apply_in_tiles(first_stage.moments, x, TILE * f, OVERLAP * f, 1 / f))


def decode_in_tiles(first_stage: AutoencoderKL, z: Tensor) -> Tensor:
    """first_stage.decode for latents of any size."""
    return apply_in_tiles(first_stage.decode, z, TILE, OVERLAP, first_stage.factor)
