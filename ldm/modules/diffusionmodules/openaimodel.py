"""The denoising UNet (Dhariwal & Nichol 2021, section 3; Rombach et al. 2022) with the published parameter names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.detail import NO_DETAILS, BlockDetail
from ldm.modules.diffusionmodules.util import Upsample, checkpoint, tile_batch, timestep_embedding, zero_module
from ldm.util import UserError

Layer = TypeVar("Layer", bound=nn.Module)

# Keys of published configs that this UNet does not use -> the only value that it accepts; None: any value.
FIXED_OPTIONS = {
    "image_size": None,
    "legacy": False,
    "use_spatial_transformer": True,
    "add_conv_in_front_of_unet": False,
    "dropout": 0,
    "conv_resample": True,
    "dims": 2,
    "use_fp16": False,
    "num_classes": None,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "num_head_channels": -1,
}


class TimestepEmbedSequential(nn.Sequential):
    """The layers of one block. Residual blocks get the time embedding, transformers the context and details."""

    def forward(
        self, x: Tensor, emb: Tensor, context: Tensor, details: Iterator[BlockDetail | None] = NO_DETAILS
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, details)
            else:
                x = layer(x)
        return x


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions with the time embedding added between them, around a shortcut."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, use_checkpoint: bool = False):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels, eps=1e-5), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels, eps=1e-5),
            nn.SiLU(),
            nn.Identity(),  # a dropout of 0 in the published code, whose weights are numbered with it
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        keeps_width = channels == out_channels
        self.skip_connection = nn.Identity() if keeps_width else nn.Conv2d(channels, out_channels, 1)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B,C,h,w), emb (b,E) with b = B or a divisor of it -> (B,C',h,w)."""
        return checkpoint(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = h + tile_batch(self.emb_layers(emb), h.shape[0])[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Level(NamedTuple):
    """One resolution of the UNet; the first level has the resolution of the input."""

    channels: int
    attends: bool


def build_encoder(
    first: nn.Conv2d,
    levels: Sequence[Level],
    num_res_blocks: int,
    residual: Callable[[int, int], ResBlock],
    attention: Callable[[int], SpatialTransformer],
) -> tuple[nn.ModuleList, list[int]]:
    """The blocks on the way down, and the channels of each block's output, which the decoder gets as a skip."""
    channels = first.out_channels
    blocks, skip_channels = nn.ModuleList([TimestepEmbedSequential(first)]), [channels]
    for i, level in enumerate(levels):
        for _ in range(num_res_blocks):
            layers: list[nn.Module] = [residual(channels, level.channels)]
            channels = level.channels
            if level.attends:
                layers.append(attention(channels))
            blocks.append(TimestepEmbedSequential(*layers))
            skip_channels.append(channels)
        if i < len(levels) - 1:
            blocks.append(TimestepEmbedSequential(Downsample(channels)))
            skip_channels.append(channels)
    return blocks, skip_channels


def build_decoder(
    skip_channels: Sequence[int],
    levels: Sequence[Level],
    num_res_blocks: int,
    residual: Callable[[int, int], ResBlock],
    attention: Callable[[int], SpatialTransformer],
) -> nn.ModuleList:
    """The blocks on the way up, one more per level than on the way down. Each takes one skip, the last one first."""
    blocks, skips = nn.ModuleList(), list(skip_channels)
    channels = levels[-1].channels
    for i, level in reversed(list(enumerate(levels))):
        for k in range(num_res_blocks + 1):
            layers: list[nn.Module] = [residual(channels + skips.pop(), level.channels)]
            channels = level.channels
            if level.attends:
                layers.append(attention(channels))
            if i > 0 and k == num_res_blocks:
                layers.append(Upsample(channels))
            blocks.append(TimestepEmbedSequential(*layers))
    return blocks


def check_options(fixed: Mapping[str, object], widths: Sequence[int], num_heads: int) -> None:
    """Raises UserError for options of a config that describe another network than UNetModel, or an impossible one."""
    for name, value in fixed.items():
        if name not in FIXED_OPTIONS:
            raise UserError(f"config: UNetModel does not know {name!r}: remove it")
        if FIXED_OPTIONS[name] is not None and value != FIXED_OPTIONS[name]:
            raise UserError(
                f"config: UNetModel's {name} is {value}: use {FIXED_OPTIONS[name]}, the only supported value"
            )
    for width in widths:
        if width % num_heads:
            raise UserError(
                f"config: UNetModel cannot split {width} channels into {num_heads} heads: use a divisor as num_heads"
            )


class UNetModel(nn.Module):
    """eps(x, t, context) with x (B,9,h,w), see conventions.py, and context (B,M,context_dim).

    Parameters (lengths in channels unless stated otherwise):
        in_channels, out_channels: of the input and the predicted noise
        model_channels: width of the first level
        num_res_blocks: residual blocks per level on the way down (one more on the way up)
        attention_resolutions: downsampling factors (1, 2, 4, ...) of the levels that attend
        channel_mult: width of each level in units of model_channels
        num_heads: of every attention
        context_dim: width of a context token
        transformer_depth: transformer blocks per attention
        use_checkpoint: recompute activations in the backward pass instead of keeping them
        fixed: other keys of published configs, accepted with the values of FIXED_OPTIONS
    h and w must be multiples of `size_multiple`."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        num_heads: int,
        context_dim: int,
        transformer_depth: int = 1,
        use_checkpoint: bool = False,
        **fixed: object,
    ):
        super().__init__()
        check_options(fixed, [mult * model_channels for mult in channel_mult], num_heads)
        self.model_channels = model_channels
        self.context_dim = context_dim
        self.size_multiple = 2 ** (len(channel_mult) - 1)  # latent pixels

        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )

        def residual(channels: int, out_channels: int) -> ResBlock:
            return ResBlock(channels, emb_channels, out_channels, use_checkpoint)

        def attention(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, num_heads, context_dim, transformer_depth, use_checkpoint)

        levels = [
            Level(mult * model_channels, attends=2**i in attention_resolutions) for i, mult in enumerate(channel_mult)
        ]
        first = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        self.input_blocks, skip_channels = build_encoder(first, levels, num_res_blocks, residual, attention)
        channels = levels[-1].channels
        self.middle_block = TimestepEmbedSequential(
            residual(channels, channels), attention(channels), residual(channels, channels)
        )
        self.output_blocks = build_decoder(skip_channels, levels, num_res_blocks, residual, attention)
        channels = levels[0].channels
        self.out = nn.Sequential(
            nn.GroupNorm(32, channels, eps=1e-5),
            nn.SiLU(),
            zero_module(nn.Conv2d(channels, out_channels, 3, padding=1)),
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, details: Sequence[BlockDetail] | None = None
    ) -> Tensor:
        """x (b,9,h,w), timesteps (b,), context (B,M,D) -> eps (B,4,h,w). details: one for each transformer block.

        B may be a multiple of b: then all of x is evaluated with each of the B/b groups of contexts, and the layers
        before the first cross-attention run once for all groups (see tile_batch)."""
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        remaining = NO_DETAILS if details is None else iter(details)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context, remaining)
            skips.append(x)
        x = self.middle_block(x, emb, context, remaining)
        for block in self.output_blocks:
            x = block(torch.cat([x, tile_batch(skips.pop(), x.shape[0])], dim=1), emb, context, remaining)
        return self.out(x)


def layers_of(unet: nn.Module, kind: type[Layer]) -> Iterator[Layer]:
    """All modules of a kind, in the order in which they run. unet: a UNetModel, or its fast form."""
    for part in (unet.input_blocks, unet.middle_block, unet.output_blocks):
        yield from (module for module in part.modules() if isinstance(module, kind))
