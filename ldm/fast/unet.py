"""The UNet and the autoencoder as an edit runs them: the same numbers from less work (docs/speed.md has the proofs).

Built from the published modules, whose weights they share where dtype and layout allow. Nothing here is trained."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.conventions import INPAINT, NOISY_LATENT
from ldm.fast.region import WHOLE_PICTURE, WholePicture
from ldm.fast.winograd import WinogradConv2d
from ldm.modules.attention import BasicTransformerBlock, CrossAttention, SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from ldm.modules.diffusionmodules.util import Upsample, tile_batch, timestep_embedding


@functools.cache
def onednn_is_faster() -> bool:
    """Than MKL, which PyTorch takes for float32's matrix products and which is made for Intel's CPUs: on AMD's. The
    operator is not a public one, so it is tried."""
    try:
        x = torch.ones(1, 1)
        works = torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "").item() == 1
        return works and "AMD" in torch.cpu.get_capabilities()["cpu_name"]
    except (AttributeError, KeyError, RuntimeError, TypeError):
        return False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, from the faster of two libraries; no gradients."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """What `convert` makes of nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def convert(
    module: nn.Module, dtype: torch.dtype | None = None, layout: torch.memory_format = torch.contiguous_format
) -> nn.Module:
    """A copy in this dtype and, of convolutions, this layout; no gradients. Weights that are so already are shared."""
    memo: dict[int, nn.Parameter] = {}
    for p in module.parameters():
        weight = p.detach().to(dtype or p.dtype)
        memo[id(p)] = nn.Parameter(weight.contiguous(memory_format=layout) if p.ndim == 4 else weight, False)
    for b in module.buffers():  # such as the means and variances of a ResNet's BatchNorm
        if b.is_floating_point():
            memo[id(b)] = b.to(dtype or b.dtype)
    new = copy.deepcopy(module, memo)
    for part in new.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
        elif WinogradConv2d.fits(part):
            part.__class__ = WinogradConv2d
    return new


class PhaseUpsample(nn.Module):
    """Nearest upsampling by 2, then a 3x3 convolution (Upsample), as four 2x2 convolutions of the small picture.

    Of the small picture's rows i-1, i, i+1 the three kernel rows w0, w1, w2 see, for output row 2i, the first with w0
    and the second with w1 + w2; for row 2i + 1 the second with w0 + w1 and the third with w2; columns likewise. That is
    16 products where there were 36. transposed: collected by input, as one kernel of a transposed convolution of
    stride 2, which is faster channels last; else one convolution to the channels of all four phases."""

    def __init__(self, conv: nn.Conv2d, transposed: bool):
        super().__init__()
        w = conv.weight.detach()
        for dim in (2, 3):
            w0, w1, w2 = w.unbind(dim)
            w = torch.stack([w2, w1 + w2, w0 + w1, w0], dim)
        bias, words = conv.bias.detach(), {"padding": 1, "device": "meta"}
        if transposed:
            self.conv = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, **words)
            w = w.transpose(0, 1)
        else:  # (a b o) i k l: phase a has the kernel's rows 3 - a - 2k
            self.conv = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 2, **words)
            w, bias = rearrange(w.flip(2, 3), "o i (k a) (l b) -> (a b o) i k l", a=2, b=2), bias.repeat(4)
        self.conv.weight, self.conv.bias = nn.Parameter(w.contiguous(), False), nn.Parameter(bias, False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C',2h,2w)."""
        if isinstance(self.conv, nn.ConvTranspose2d):
            return self.conv(x)
        h, w = x.shape[-2:]
        y = rearrange(self.conv(x), "n (a b o) h w -> n a b o h w", a=2, b=2)
        large = y.new_empty(len(x), y.shape[3], h, 2, w, 2)
        for a in (0, 1):
            for b in (0, 1):
                large[:, :, :, a, :, b] = y[:, a, b, :, a : a + h, b : b + w]
        return rearrange(large, "n o h a w b -> n o (h a) (w b)")


def replace_upsampling(module: nn.Module, transposed: bool) -> nn.Module:
    """The module, every Upsample inside it replaced; in place, so of a copy. To be done in float32: then the sums of
    weights are rounded once."""
    for name, child in module.named_children():
        if isinstance(child, Upsample):
            setattr(module, name, PhaseUpsample(child.conv, transposed))
        else:
            replace_upsampling(child, transposed)
    return module


class FastResBlock(nn.Module):
    """ResBlock, its time embedding and first bias given as one vector."""

    def __init__(self, block: ResBlock, dtype: torch.dtype, layout: torch.memory_format):
        super().__init__()
        self.norm1, self.conv1 = (convert(block.in_layers[i], dtype, layout) for i in (0, 2))
        self.conv1.bias = None
        self.norm2, self.conv2 = (convert(block.out_layers[i], dtype, layout) for i in (0, 3))
        self.skip = convert(block.skip_connection, dtype, layout)

    def forward(self, x: Tensor, shift: Tensor, area: WholePicture) -> Tensor:
        """x (B,C,h,w), shift (1,C') -> (B,C',h,w)."""
        h = area.conv(self.conv1, F.silu(self.norm1(area.around(self.norm1, x))))
        h = area.around(self.norm2, h) + shift[:, :, None, None]  # this timestep's, around a rectangle as well
        return self.skip(x) + area.conv(self.conv2, F.silu(self.norm2(h)))


def shift_of(block: ResBlock, emb: Tensor) -> Tensor:
    """emb (T,E) -> (T,C'): what FastResBlock adds for each of T time embeddings."""
    return block.emb_layers(emb) + block.in_layers[2].bias


class FastSelfAttention(nn.Module):
    """CrossAttention of x with itself: one product for q, k and v."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype):
        super().__init__()
        self.heads = attention.heads
        qkv = [m.weight.detach() for m in (attention.to_q, attention.to_k, attention.to_v)]
        self.qkv = nn.Parameter(torch.cat(qkv).to(dtype), False)
        self.to_out = convert(attention.to_out, dtype)

    def forward(self, x: Tensor, width: int, area: WholePicture) -> Tensor:
        """x (B,N,C), N positions in rows of `width` -> (B,N,C)."""
        q, kv = linear(x, self.qkv).split([x.shape[2], 2 * x.shape[2]], dim=2)
        kv = area.around(self, rearrange(kv, "b (y x) c -> b c y x", x=width))
        q = rearrange(q, "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(kv, "b (two h d) y x -> two b h (y x) d", two=2, h=self.heads)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class FastTransformerBlock(nn.Module):
    """BasicTransformerBlock for one context token, which cross-attention adds to every position alike."""

    def __init__(self, block: BasicTransformerBlock, dtype: torch.dtype):
        super().__init__()
        self.attn1 = FastSelfAttention(block.attn1, dtype)
        self.norm1, self.norm3, self.ff = (convert(m, dtype) for m in (block.norm1, block.norm3, block.ff))

    def forward(self, x: Tensor, vector: Tensor, width: int, area: WholePicture) -> Tensor:
        """x (b,N,C), N positions in rows of `width`, vector (B,C) of CrossAttention.one_token -> (B,N,C)."""
        x = self.attn1(self.norm1(x), width, area) + x
        x = tile_batch(x, vector.shape[0]) + vector[:, None]
        return self.ff(self.norm3(x)) + x


class FastTransformer(nn.Module):
    """SpatialTransformer over positions that lie channels last: its 1x1 convolutions are matrix products."""

    def __init__(self, layer: SpatialTransformer, dtype: torch.dtype):
        super().__init__()
        self.norm = convert(layer.norm, dtype)
        self.proj_in, self.proj_out = (self._linear(conv, dtype) for conv in (layer.proj_in, layer.proj_out))
        self.blocks = nn.ModuleList(FastTransformerBlock(block, dtype) for block in layer.transformer_blocks)

    @staticmethod
    def _linear(conv: nn.Conv2d, dtype: torch.dtype) -> nn.Linear:
        layer = nn.Linear(conv.in_channels, conv.out_channels, device="meta")
        layer.weight, layer.bias = nn.Parameter(conv.weight.detach().flatten(1)), nn.Parameter(conv.bias.detach())
        return convert(layer, dtype)

    def forward(self, x: Tensor, vectors: list[Tensor], area: WholePicture) -> Tensor:
        """x (b,C,h,w), a vector (B,C) for each block -> (B,C,h,w)."""
        height, width = x.shape[-2:]
        h = area.inside(self.norm(area.around(self.norm, x)))
        h = self.proj_in(rearrange(h, "b c h w -> b (h w) c"))
        for block, vector in zip(self.blocks, vectors, strict=True):
            h = block(h, vector, width, area)
        h = rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=height, w=width)
        return tile_batch(x, h.shape[0]) + h  # in the memory layout of x, the first: h lies channels last


class FastUNet(nn.Module):
    """UNetModel for contexts of one token, in three parts: `table`, once a model; `prepare`, once an edit; `forward`,
    once a step. Input, output, embeddings and vectors are computed in the UNet's own float32, the rest in `dtype`.

    num_timesteps: t is below it; layout: of activations and of convolutions' weights."""

    def __init__(
        self,
        unet: UNetModel,
        num_timesteps: int,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.channels_last,
    ):
        super().__init__()
        self.dtype, self.layout, self.num_timesteps = dtype, layout, num_timesteps
        self.source = [unet]  # in a list, so that its parameters are not this module's too
        first = unet.input_blocks[0][0].weight.detach()
        self.first = nn.Parameter(first[:, NOISY_LATENT].contiguous(), False)

        def fast(layer: nn.Module) -> nn.Module:
            if isinstance(layer, ResBlock):
                return FastResBlock(layer, dtype, layout)
            if isinstance(layer, SpatialTransformer):
                return FastTransformer(layer, dtype)
            if isinstance(layer, Upsample):
                return convert(PhaseUpsample(layer.conv, layout == torch.channels_last), dtype, layout)
            return convert(layer, dtype, layout)

        def block(layers: nn.Sequential) -> nn.ModuleList:
            return nn.ModuleList(fast(layer) for layer in layers)

        self.input_blocks = nn.ModuleList(block(layers) for layers in unet.input_blocks[1:])
        self.middle_block = block(unet.middle_block)
        self.output_blocks = nn.ModuleList(block(layers) for layers in unet.output_blocks)
        self.out_norm, self.out_conv = convert(unet.out[0], dtype), convert(unet.out[2], first.dtype)
        for part in self.modules():
            if isinstance(part, WinogradConv2d):
                part.keeps = True

    @torch.no_grad()
    def table(self) -> Tensor:
        """(T, sum of the residual blocks' widths) in `dtype`: what each of them adds at each timestep."""
        (unet,) = self.source
        t = torch.arange(self.num_timesteps, device=self.first.device)
        emb = unet.time_embed(timestep_embedding(t, unet.model_channels).to(self.first.dtype))
        return torch.cat([shift_of(m, emb) for m in layers_of(unet, ResBlock)], dim=1).to(self.dtype)

    @torch.no_grad()
    def prepare(self, inpaint: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """inpaint (b,5,h,w), contexts (B,1,D) -> what is the same in every step: the first convolution of the fixed
        channels (b,C,h,w) float32, and the vectors of all transformer blocks (B, sum of their widths) in `dtype`."""
        assert contexts.shape[1] == 1, "FastUNet is for contexts of one token"
        (unet,) = self.source
        conv = unet.input_blocks[0][0]
        fixed = F.conv2d(inpaint, conv.weight[:, INPAINT], conv.bias, padding=1)
        blocks = layers_of(unet, BasicTransformerBlock)
        vectors = torch.cat([block.attn2.one_token(contexts)[:, 0] for block in blocks], dim=1)
        return fixed, vectors.to(self.dtype)

    def forward(
        self, x: Tensor, shifts: Tensor, fixed: Tensor, vectors: Tensor, area: WholePicture = WHOLE_PICTURE
    ) -> Tensor:
        """x (b,4,h,w) float32, a row (1,...) of `table`, fixed and vectors of `prepare` -> eps (B,4,h,w) float32, of
        the area that is computed."""
        shift, vector = Rows(shifts), Rows(vectors)

        def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
            for layer in layers:
                if isinstance(layer, FastResBlock):
                    x = layer(x, shift.take(layer.conv1.out_channels), area)
                elif isinstance(layer, FastTransformer):
                    x = layer(x, [vector.take(x.shape[1]) for _ in layer.blocks], area)
                else:  # up or down
                    x = area.conv(layer, area.around(layer, x))
            return x

        x = area.inside(F.conv2d(x, self.first, padding=1) + fixed).to(self.dtype, memory_format=self.layout)
        skips = [x]
        for layers in self.input_blocks:
            x = run(layers, x)
            skips.append(x)
        x = run(self.middle_block, x)
        for layers in self.output_blocks:
            x = run(layers, torch.cat([x, tile_batch(skips.pop(), x.shape[0])], dim=1))
        x = F.silu(self.out_norm(area.around(self.out_norm, x)))
        return area.conv(self.out_conv, x.to(self.first.dtype))


class Rows:
    """(B,N) from left to right: take(n) gives the next n columns."""

    def __init__(self, rows: Tensor):
        self.rows, self.at = rows, 0

    def take(self, width: int) -> Tensor:
        self.at += width
        return self.rows[:, self.at - width : self.at]


def layers_of(unet: UNetModel, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """All modules of a kind, in the order in which they run."""
    for part in (unet.input_blocks, unet.middle_block, unet.output_blocks):
        yield from (module for module in part.modules() if isinstance(module, kind))
