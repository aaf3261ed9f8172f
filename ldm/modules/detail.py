"""A second look at the reference, beside the one token: a transformer block reads more of it by attention.

    r = softmax([q k_0; q K] / sqrt(d)) [0; V]                 q = W_q h + p, h the normed input of the self-attention
    x <- x + W_o r + W_2 (W_1 h * gelu(W_g r))                 as GEGLU (Shazeer 2020, arXiv 2002.05202), gated by r

p says where in the region a position is. K and V come from the reference (ldm/models/detail), once an edit. A position
that finds nothing of its own in the reference attends to the null key k_0, whose value is zero; if all other keys are
hidden, exactly zero is added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class BlockDetail(NamedTuple):
    """What one transformer block reads of n references, for the last n rows of its batch.

    query, out (C,C): W_q and W_o; feed (3,C,C): W_1, W_g, W_2; keys, values (n,H,1+M,d), the null key first, C = H d;
    places (n,C,h,w): p; seen (n,1,1,1+M), false for keys that are hidden, or None if no key is."""

    query: Tensor
    out: Tensor
    feed: Tensor
    keys: Tensor
    values: Tensor
    places: Tensor
    seen: Tensor | None

    def to(self, device: torch.device, dtype: torch.dtype) -> BlockDetail:
        numbers = (tensor.to(device, dtype) for tensor in self[:6])
        return BlockDetail(*numbers, None if self.seen is None else self.seen.to(device))

    def in_part(self, crop: Callable[[Tensor], Tensor]) -> BlockDetail:
        """For a part of the picture. crop: (n,C,h,w) of all of it -> of the part, at any resolution."""
        return self._replace(places=crop(self.places))


NO_DETAILS: Iterator[None] = repeat(None)  # for any number of blocks


def add_detail(
    x: Tensor, h: Tensor, detail: BlockDetail, linear: Callable[[Tensor, Tensor], Tensor] = F.linear
) -> Tensor:
    """x (B,N,C), h (b,N,C) with b = B or n -> x (B,N,C) with the details added to its last n rows.

    With guidance these are the rows of the reference's token; those of the learned vector stay as they are."""
    n, heads = detail.keys.shape[:2]
    q = linear(h[-n:], detail.query) + rearrange(detail.places, "n c h w -> n (h w) c")
    q = rearrange(q, "b n (h d) -> b h n d", h=heads)
    read = F.scaled_dot_product_attention(q, detail.keys, detail.values, detail.seen)
    read = rearrange(read, "b h n d -> b n (h d)")
    inner, gate, outer = detail.feed
    added = linear(read, detail.out) + linear(linear(h[-n:], inner) * F.gelu(linear(read, gate)), outer)
    return x + added if n == len(x) else torch.cat([x[:-n], x[-n:] + added])


@contextmanager
def recorded_outputs(norms: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, every output of the norms is appended to the list, in the order in which they run."""
    outputs: list[Tensor] = []
    hooks = [norm.register_forward_hook(lambda _, __, output: outputs.append(output)) for norm in norms]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
