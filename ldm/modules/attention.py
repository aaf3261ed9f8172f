"""Transformer blocks over the positions of a feature map (Rombach et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.detail import NO_DETAILS, BlockDetail, add_detail
from ldm.modules.diffusionmodules.util import checkpoint, tile_batch, zero_module

SHORT = 128  # keys


class GEGLU(nn.Module):
    """x -> a * gelu(b) with a ++ b = proj(x) (Shazeer 2020, equation 6)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to mult * dim channels, then a linear map back to dim."""

    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        # index 1 is a dropout of 0 in the published code, whose weights are numbered with it
        self.net = nn.Sequential(GEGLU(dim, mult * dim), nn.Identity(), nn.Linear(mult * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of q (B,H,N,d), k and v (B,H,M,d)."""
    if q.requires_grad and q.device.type == "cpu" and k.shape[2] <= SHORT:
        # the gradient of PyTorch's fused kernel takes twice as long as these three operations on short sequences
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, equation 1) with q from x, and k and v from the context, or from
    x if there is no context. query_dim, context_dim: widths of x and of the context; d = query_dim / heads."""

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 8):
        super().__init__()
        context_dim = context_dim or query_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, query_dim, bias=False)
        self.to_k = nn.Linear(context_dim, query_dim, bias=False)
        self.to_v = nn.Linear(context_dim, query_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(query_dim, query_dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B,N,C), context (B,M,D) -> (B,N,C)."""
        context = x if context is None else context
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=self.heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(rearrange(attention(q, k, v), "b h n d -> b n (h d)"))

    def one_token(self, context: Tensor) -> Tensor:
        """context (B,1,D) -> (B,1,C), equal to forward(x, context) at every position of any x.

        The softmax over a single key is 1, so the query, the key and the norm before the query have no effect."""
        return self.to_out(self.to_v(context))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each has a norm before it and a shortcut around."""

    def __init__(self, dim: int, heads: int, context_dim: int, use_checkpoint: bool = False):
        super().__init__()
        self.attn1 = CrossAttention(dim, heads=heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads=heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, context: Tensor, detail: BlockDetail | None = None) -> Tensor:
        """x (b,N,C), context (B,M,D) -> (B,N,C); B is b or, with guidance, a multiple of it (see tile_batch)."""
        return checkpoint(self._forward, self.use_checkpoint, x, context, detail)

    def _forward(self, x: Tensor, context: Tensor, detail: BlockDetail | None) -> Tensor:
        h = self.norm1(x)
        x = self.attn1(h) + x
        x = tile_batch(x, context.shape[0])
        if detail is not None:
            x = add_detail(x, h, detail)
        if context.shape[1] == 1:
            x = self.attn2.one_token(context) + x
        else:
            x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks on the h*w positions of a feature map (B,C,h,w), with a shortcut around them."""

    def __init__(self, channels: int, heads: int, context_dim: int, depth: int = 1, use_checkpoint: bool = False):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, context_dim, use_checkpoint) for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, details: Iterator[BlockDetail | None] = NO_DETAILS) -> Tensor:
        """x (b,C,h,w), context (B,M,D), the details of the next blocks -> (B,C,h,w)."""
        height, width = x.shape[-2:]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context, next(details))
        h = self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height, w=width))
        return tile_batch(x, h.shape[0]) + h  # x comes first: the sum has its memory layout, h is channels last
