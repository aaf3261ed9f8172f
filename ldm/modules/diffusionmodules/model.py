"""Encoder and decoder of the autoencoder (Esser et al. 2021; Rombach et al. 2022) under the published names."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import Upsample


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut: (B,channels,h,w) -> (B,out_channels,h,w)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention with one head over all positions; the projections are 1x1 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halves height and width: a 3x3 convolution of stride 2, padded on the right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution; then its `downsample` or `upsample`, if it has one."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        blocks: int,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        if downsample is not None:
            self.downsample = downsample
        if upsample is not None:
            self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class ConvOut(nn.Module):
    """The last layers of encoder and decoder, which may have a higher precision than the layers before them."""

    norm_out: nn.GroupNorm
    conv_out: nn.Conv2d

    def convolve_out(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(x.to(self.conv_out.weight.dtype))))


class Encoder(ConvOut):
    """(B,in_channels,H,W) -> (B,2*z_channels,H/f,W/f), f = 2^(levels-1).

    ch: channels of the first level; ch_mult: those of each level, in units of ch"""

    def __init__(self, *, in_channels: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = ch
        for i, mult in enumerate(ch_mult):
            downsample = Downsample(mult * ch) if i < len(ch_mult) - 1 else None
            self.down.append(Level(channels, mult * ch, num_res_blocks, downsample=downsample))
            channels = mult * ch
        self.mid = Middle(channels)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, 2 * z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x.to(self.conv_in.weight.dtype))
        for level in self.down:
            x = level(x)
        return self.convolve_out(self.mid(x))


class Decoder(ConvOut):
    """(B,z_channels,h,w) -> (B,out_ch,h*f,w*f), f = 2^(levels-1). `up` is indexed by level and runs from last to first.

    ch: channels of the first level; ch_mult: those of each level, in units of ch"""

    def __init__(self, *, out_ch: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int):
        super().__init__()
        channels = ch_mult[-1] * ch
        self.conv_in = nn.Conv2d(z_channels, channels, 3, padding=1)
        self.mid = Middle(channels)
        levels = []
        for i, mult in reversed(list(enumerate(ch_mult))):
            upsample = Upsample(mult * ch) if i > 0 else None
            levels.append(Level(channels, mult * ch, num_res_blocks + 1, upsample=upsample))
            channels = mult * ch
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid(self.conv_in(z.to(self.conv_in.weight.dtype)))
        for level in reversed(self.up):
            z = level(z)
        return self.convolve_out(z)
