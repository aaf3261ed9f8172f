"""The first stage: pictures to latents and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.util import UserError


class AutoencoderKL(nn.Module):
    """KL-regularised autoencoder (Rombach et al. 2022, appendix G) with downsampling factor `factor`.

    Parameters:
        ddconfig: in_channels, out_ch, ch (channels of the first level), ch_mult (one factor a level), num_res_blocks,
            z_channels. double_z must be true, attn_resolutions empty, dropout 0; resolution is not used.
        embed_dim: channels of the latent
        lossconfig, monitor: of the published config; training the autoencoder is not part of this class"""

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int, lossconfig: Any = None, monitor: str | None = None):
        super().__init__()
        dd = dict(ddconfig)
        dd.pop("resolution", None)
        for name, only in (("double_z", True), ("attn_resolutions", []), ("dropout", 0.0)):
            if (value := dd.pop(name, only)) != only:
                raise UserError(f"config: AutoencoderKL supports {name} = {only} only, not {value}")
        in_channels, out_ch = dd.pop("in_channels"), dd.pop("out_ch")
        self.encoder = Encoder(in_channels=in_channels, **dd)
        self.decoder = Decoder(out_ch=out_ch, **dd)
        self.quant_conv = nn.Conv2d(2 * dd["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, dd["z_channels"], 1)
        self.embed_dim = embed_dim
        self.factor = 2 ** (len(dd["ch_mult"]) - 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """(B,3,H,W) in [-1,1] -> posterior over (B,4,H/f,W/f)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """(B,4,h,w) -> (B,3,h*f,w*f), about [-1,1]."""
        return self.decoder(self.post_quant_conv(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> the same through the posterior's mean."""
        return self.decode(self.encode(x).mode())
