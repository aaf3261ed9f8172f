"""The UNet as an edit runs it: the same result with less work (docs/speed.md has the proofs).

`timestep_shifts` computes once per model, and `prepare_edit` once per edit, what is the same in every step. `FastUNet`
computes the rest in each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.conventions import INPAINT, NOISY_LATENT
from ldm.fast.convert import PhaseUpsample, convert
from ldm.fast.onednn import linear
from ldm.fast.region import WHOLE_PICTURE, Area
from ldm.fast.winograd import WinogradConv2d
from ldm.modules.attention import BasicTransformerBlock, CrossAttention, SpatialTransformer
from ldm.modules.detail import NO_DETAILS, BlockDetail, add_detail
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel, layers_of
from ldm.modules.diffusionmodules.util import Upsample, tile_batch, timestep_embedding

# --------------------------------------------------------------------------------------------- computed beforehand


@torch.no_grad()
def timestep_shifts(unet: UNetModel, num_timesteps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(T, sum of the residual blocks' widths): what each block adds at each timestep, its time embedding's projection
    plus its first convolution's bias. Computed in the UNet's own dtype, rounded to `dtype`."""
    weight = unet.time_embed[0].weight
    t = torch.arange(num_timesteps, device=weight.device)
    emb = unet.time_embed(timestep_embedding(t, unet.model_channels).to(weight.dtype))
    shifts = [block.emb_layers(emb) + block.in_layers[2].bias for block in layers_of(unet, ResBlock)]
    return torch.cat(shifts, dim=1).to(dtype)


@torch.no_grad()
def prepare_edit(
    unet: UNetModel, inpaint: Tensor, contexts: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """inpaint (b,5,h,w), contexts (B,K,D) of K regions' tokens -> what is the same in every step of the edit:

    fixed (b,C,h,w), the first convolution of the 5 inpainting channels, in the UNet's own dtype;
    vectors (B,K, sum of the transformer blocks' widths) in `dtype`, what each block's cross-attention adds."""
    conv = unet.input_blocks[0][0]
    fixed = F.conv2d(inpaint, conv.weight[:, INPAINT], conv.bias, padding=1)
    blocks = layers_of(unet, BasicTransformerBlock)
    vectors = torch.cat([block.attn2.one_token(contexts) for block in blocks], dim=2)
    return fixed, vectors.to(dtype)


# --------------------------------------------------------------------------------------------- computed in every step


class FastResBlock(nn.Module):
    """ResBlock that is given its row of timestep_shifts in place of the time embedding."""

    def __init__(self, block: ResBlock, dtype: torch.dtype, layout: torch.memory_format):
        super().__init__()
        self.norm1, self.conv1 = (convert(block.in_layers[i], dtype, layout) for i in (0, 2))
        self.conv1.bias = None  # it is part of the shift
        self.norm2, self.conv2 = (convert(block.out_layers[i], dtype, layout) for i in (0, 3))
        self.skip = convert(block.skip_connection, dtype, layout)

    def forward(self, x: Tensor, shift: Tensor, area: Area) -> Tensor:
        """x (B,C,h,w), shift (1,C') -> (B,C',h,w)."""
        h = area.convolve(self.conv1, F.silu(self.norm1(area.with_surroundings(self.norm1, x))))
        # around a rectangle, too, the shift is that of the current timestep
        h = area.with_surroundings(self.norm2, h) + shift[:, :, None, None]
        return self.skip(x) + area.convolve(self.conv2, F.silu(self.norm2(h)))


class FastSelfAttention(nn.Module):
    """CrossAttention of x with itself: one matrix product for q, k and v."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype):
        super().__init__()
        self.heads = attention.heads
        qkv = [m.weight.detach() for m in (attention.to_q, attention.to_k, attention.to_v)]
        self.qkv = nn.Parameter(torch.cat(qkv).to(dtype), requires_grad=False)
        self.to_out = convert(attention.to_out, dtype)

    def forward(self, x: Tensor, width: int, area: Area) -> Tensor:
        """x (B,N,C), N positions in rows of `width` -> (B,N,C)."""
        q, kv = linear(x, self.qkv).split([x.shape[2], 2 * x.shape[2]], dim=2)
        kv = area.with_surroundings(self, rearrange(kv, "b (y x) c -> b c y x", x=width))
        q = rearrange(q, "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(kv, "b (two h d) y x -> two b h (y x) d", two=2, h=self.heads)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class FastTransformerBlock(nn.Module):
    """BasicTransformerBlock for one context token: cross-attention adds the same vector at every position, or where
    tokens differ from place to place, each position's own."""

    def __init__(self, block: BasicTransformerBlock, dtype: torch.dtype):
        super().__init__()
        self.attn1 = FastSelfAttention(block.attn1, dtype)
        self.norm1, self.norm3, self.ff = (convert(m, dtype) for m in (block.norm1, block.norm3, block.ff))

    def forward(self, x: Tensor, vector: Tensor, width: int, area: Area, detail: BlockDetail | None = None) -> Tensor:
        """x (b,N,C), N positions in rows of `width`, vector (B,1 or N,C) of CrossAttention.one_token -> (B,N,C)."""
        h = self.norm1(x)
        x = self.attn1(h, width, area) + x
        x = tile_batch(x, vector.shape[0])
        if detail is not None:
            x = add_detail(x, h, detail.in_part(area.crop), linear)
        x = x + vector
        return self.ff(self.norm3(x)) + x


class FastTransformer(nn.Module):
    """SpatialTransformer on positions stored channels last: its 1x1 convolutions are matrix products."""

    def __init__(self, layer: SpatialTransformer, dtype: torch.dtype):
        super().__init__()
        self.norm = convert(layer.norm, dtype)
        self.proj_in, self.proj_out = (self._linear(conv, dtype) for conv in (layer.proj_in, layer.proj_out))
        self.blocks = nn.ModuleList(FastTransformerBlock(block, dtype) for block in layer.transformer_blocks)

    @staticmethod
    def _linear(conv: nn.Conv2d, dtype: torch.dtype) -> nn.Module:
        """A 1x1 convolution as a linear layer."""
        layer = nn.Linear(conv.in_channels, conv.out_channels, device="meta")
        layer.weight, layer.bias = nn.Parameter(conv.weight.detach().flatten(1)), nn.Parameter(conv.bias.detach())
        return convert(layer, dtype)

    def forward(
        self,
        x: Tensor,
        vectors: list[Tensor],
        area: Area,
        shares: Tensor | None = None,
        details: Iterator[BlockDetail | None] = NO_DETAILS,
    ) -> Tensor:
        """x (b,C,h,w), vectors (B,K,C) for each block, shares as in FastUNet, details of the next blocks ->
        (B,C,h,w)."""
        height, width = x.shape[-2:]
        whole = area.with_surroundings(self.norm, x)
        if shares is not None:
            reduced = area.crop(F.adaptive_avg_pool2d(shares, whole.shape[-2:])).flatten(2).mT.to(x.dtype)
            vectors = [tile_batch(reduced, len(each)) @ each for each in vectors]
        h = area.crop(self.norm(whole))
        h = self.proj_in(rearrange(h, "b c h w -> b (h w) c"))
        for block, vector in zip(self.blocks, vectors, strict=True):
            h = block(h, vector, width, area, next(details))
        h = rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=height, w=width)
        return tile_batch(x, h.shape[0]) + h  # x comes first: the sum has its memory layout, h is channels last


def fast_layer(layer: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> nn.Module:
    """The fast form of one layer of UNetModel's blocks."""
    if isinstance(layer, ResBlock):
        return FastResBlock(layer, dtype, layout)
    if isinstance(layer, SpatialTransformer):
        return FastTransformer(layer, dtype)
    if isinstance(layer, Upsample):
        return convert(PhaseUpsample(layer.conv, layout == torch.channels_last), dtype, layout)
    return convert(layer, dtype, layout)


class FastUNet(nn.Module):
    """UNetModel for contexts of one token. Its first and last convolution are in the UNet's own float32, the rest is in
    `dtype`. layout: memory format of activations and of convolutions' weights."""

    def __init__(
        self,
        unet: UNetModel,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.channels_last,
    ):
        super().__init__()
        self.dtype, self.layout = dtype, layout
        first = unet.input_blocks[0][0].weight.detach()
        self.first = nn.Parameter(first[:, NOISY_LATENT].contiguous(), requires_grad=False)

        def fast_block(layers: nn.Sequential) -> nn.ModuleList:
            return nn.ModuleList(fast_layer(layer, dtype, layout) for layer in layers)

        self.input_blocks = nn.ModuleList(fast_block(layers) for layers in unet.input_blocks[1:])
        self.middle_block = fast_block(unet.middle_block)
        self.output_blocks = nn.ModuleList(fast_block(layers) for layers in unet.output_blocks)
        self.out_norm, self.out_conv = convert(unet.out[0], dtype), convert(unet.out[2], first.dtype)
        for layer in self.modules():
            if isinstance(layer, WinogradConv2d):
                layer.keep_transformed = True

    def forward(
        self,
        x: Tensor,
        shifts: Tensor,
        fixed: Tensor,
        vectors: Tensor,
        area: Area = WHOLE_PICTURE,
        shares: Tensor | None = None,
        details: Sequence[BlockDetail] | None = None,
    ) -> Tensor:
        """eps (B,4,h,w) float32, of the area that is computed.

        x (b,4,h,w) float32: the noisy latent; shifts (1,...): the timestep's row of timestep_shifts; fixed, vectors: of
        prepare_edit; shares (b,K,h,w): how much each position sees of each of K tokens, summing to 1; None: K is 1;
        details: one for each transformer block, in `dtype`.

        With one key, cross-attention at a position is exactly W_o W_v c of that position's token c, and affine in c: so
        sum_k share_k(p) vector_k is that of the token sum_k share_k(p) c_k."""
        shift, vector = ColumnReader(shifts), ColumnReader(vectors)
        remaining = NO_DETAILS if details is None else iter(details)
        x = area.crop(F.conv2d(x, self.first, padding=1) + fixed).to(self.dtype, memory_format=self.layout)
        skips = [x]
        for layers in self.input_blocks:
            x = self._run(layers, x, shift, vector, area, shares, remaining)
            skips.append(x)
        x = self._run(self.middle_block, x, shift, vector, area, shares, remaining)
        for layers in self.output_blocks:
            x = torch.cat([x, tile_batch(skips.pop(), x.shape[0])], dim=1)
            x = self._run(layers, x, shift, vector, area, shares, remaining)
        x = F.silu(self.out_norm(area.with_surroundings(self.out_norm, x)))
        return area.convolve(self.out_conv, x.to(self.first.dtype))

    @staticmethod
    def _run(
        layers: nn.ModuleList,
        x: Tensor,
        shift: ColumnReader,
        vector: ColumnReader,
        area: Area,
        shares: Tensor | None,
        details: Iterator[BlockDetail | None],
    ) -> Tensor:
        for layer in layers:
            if isinstance(layer, FastResBlock):
                x = layer(x, shift.take(layer.conv1.out_channels), area)
            elif isinstance(layer, FastTransformer):
                x = layer(x, [vector.take(x.shape[1]) for _ in layer.blocks], area, shares, details)
            else:  # down- or upsampling
                x = area.convolve(layer, area.with_surroundings(layer, x))
        return x


class ColumnReader:
    """Reads a tensor (...,N) from left to right: take(n) gives the next n columns."""

    def __init__(self, rows: Tensor):
        self.rows, self.position = rows, 0

    def take(self, width: int) -> Tensor:
        self.position += width
        return self.rows[..., self.position - width : self.position]
