"""What all detail paths share: how a transformer block reads what they keep of a reference (ldm/modules/detail.py).

| variable       | symbol                                                                                      |
|----------------|---------------------------------------------------------------------------------------------|
| memory         | what is kept of a reference for a block, (R,M,E): M positions of a square grid               |
| attn1          | the block's self-attention, W_q and W_o (frozen)                                            |
| to_q, to_out   | low-rank corrections (Hu et al. 2021): W_q + alpha/r B A, W_o + alpha/r B A                   |
| to_k, to_v     | K = W_k memory, V = g W_v memory; each kind of path says what W_k and W_v are                 |
| gate           | g per channel, zero at first                                                                |
| null           | k_0, the key of a position that finds nothing                                               |
| feed           | W_1, W_g, W_2 of a feed-forward on what was read; W_2 is zero at first                       |
| *_place        | of a query's place in its region, of a key's in its reference (places.py), added to them     |
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ldm.models.detail.places import FOURIER_WIDTH, fourier, places_in_reference, places_in_region, strides
from ldm.models.diffusion.conditioning import ConditioningModel
from ldm.modules.attention import BasicTransformerBlock, CrossAttention
from ldm.modules.detail import BlockDetail
from ldm.modules.diffusionmodules.openaimodel import UNetModel, layers_of
from ldm.util import UserError

PLACE_STDS = (0.25, 0.75)  # of *_place at first, of the first and the last head: from broad to sharp
GATE_RATE = 10.0  # a gate moves this much faster than a weight: AdamW moves each of them by the learning rate


class DetailModel(ConditioningModel, Protocol):
    """What a detail path needs of a model: DetailTraining and ldm.fast.networks.Networks have all of it."""

    def patch_features(self, reference: Tensor) -> Tensor: ...

    def self_attention_inputs(self, x: Tensor, t: int, tokens: Tensor) -> list[Tensor]: ...


class Correction(nn.Module):
    """W -> W + alpha/r B A (Hu et al. 2021, section 4.1); B starts as zeros."""

    def __init__(self, channels: int, rank: int, alpha: float):
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, channels))
        self.lora_B = nn.Parameter(torch.zeros(channels, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.factor = alpha / rank

    def matrix(self, base: Tensor) -> Tensor:
        return base + self.factor * self.lora_B @ self.lora_A


class OwnMatrix(nn.Linear):
    """A matrix in place of the frozen one."""

    def __init__(self, width: int, channels: int):
        super().__init__(width, channels, bias=False)

    def matrix(self, base: Tensor) -> Tensor:
        return self.weight


class DetailBlock(nn.Module):
    """The weights of one transformer block's detail attention. to_k, to_v: a Correction or an OwnMatrix."""

    def __init__(self, attn1: CrossAttention, rank: int, alpha: float, to_k: nn.Module, to_v: nn.Module):
        super().__init__()
        channels = attn1.to_q.in_features
        self.to_q, self.to_out = (Correction(channels, rank, alpha) for _ in range(2))
        self.to_k, self.to_v = to_k, to_v
        self.gate = nn.Parameter(torch.zeros(channels))
        self.null = nn.Parameter(torch.zeros(channels))
        self.feed = nn.Parameter(torch.randn(3, channels, channels) * channels**-0.5)
        self.query_place = nn.Linear(FOURIER_WIDTH, channels, bias=False)
        nn.init.normal_(self.query_place.weight)
        with torch.no_grad():
            self.feed[2].zero_()
            self.query_place.weight *= place_stds(channels, attn1.heads)[:, None]
        self.key_place = copy.deepcopy(self.query_place)

    def forward(
        self,
        attn1: CrossAttention,
        memory: Tensor,
        seen: Tensor | None,
        in_region: Tensor,
        in_reference: Tensor,
        scale: float,
    ) -> BlockDetail:
        """memory (n,K M,E) of K references; seen (n,K M) bool, or None if all keys are; in_region (n,h,w,2),
        in_reference (M,2): places of queries and keys; scale: strength, 0 to 1."""
        k = F.linear(memory, self.to_k.matrix(attn1.to_k.weight)).unflatten(1, (-1, len(in_reference)))
        k = (k + self.key_place(fourier(in_reference))).flatten(1, 2)
        v = F.linear(memory, self.to_v.matrix(attn1.to_v.weight)) * (scale * GATE_RATE * self.gate)
        null = self.null.to(k.dtype).expand(len(k), 1, -1)
        keys, values = (
            rearrange(torch.cat([first, rest], dim=1), "n m (h d) -> n h m d", h=attn1.heads)
            for first, rest in ((null, k), (torch.zeros_like(null), v.to(k.dtype)))
        )
        if seen is not None:
            seen = F.pad(seen, (1, 0), value=True)[:, None, None]
        query, out = self.to_q.matrix(attn1.to_q.weight), self.to_out.matrix(attn1.to_out[0].weight)
        places = rearrange(self.query_place(fourier(in_region)), "n h w c -> n c h w")
        return BlockDetail(query, out, self.feed, keys, values, places, seen)


class DetailPath(nn.Module, ABC):
    """The trained weights of a detail path for one UNet.

    rank, alpha: of the corrections (Hu et al. 2021). Raises UserError: a rank or alpha out of range."""

    kind: ClassVar[str]

    def __init__(self, unet: UNetModel, rank: int, alpha: float):
        super().__init__()
        if not (isinstance(rank, int) and rank >= 1):
            raise UserError(f"detail: its rank is {rank!r}: use a whole number from 1, for instance 64")
        if not (isinstance(alpha, int | float) and 0 < alpha < math.inf):
            raise UserError(f"detail: its alpha is {alpha!r}: use a number above 0, for instance the rank")
        self.rank, self.alpha = rank, alpha
        self.blocks = nn.ModuleList(
            DetailBlock(attn, rank, alpha, *(self.key_matrix(attn, unet) for _ in range(2)))
            for attn in self_attentions(unet)
        )

    @property
    def encoding(self) -> dict[str, Any]:
        """Those of the settings that `encode` depends on."""
        return {"kind": self.kind}

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of build_detail."""
        return {**self.encoding, "rank": self.rank, "alpha": self.alpha}

    def require_size(self, multiple: int) -> None:
        """multiple: of this many pixels the model's pictures are. Raises UserError: references have another size."""

    @abstractmethod
    def key_matrix(self, attn1: CrossAttention, unet: UNetModel) -> nn.Module:
        """to_k or to_v of a block."""

    @abstractmethod
    def encode(self, model: DetailModel, reference: Tensor) -> Tensor:
        """What a frozen network makes of references (R,3,S,S), CLIP-normalised: (R,...), all that `memories` needs of
        the pictures."""

    @abstractmethod
    def memories(self, model: DetailModel, encoded: Tensor, tokens: Tensor) -> Iterable[Tensor]:
        """Each block's memory (R,M,E), in the order in which they run. encoded: of `encode`; tokens: c (R,1,D)."""

    def forward(
        self,
        unet: UNetModel,
        memories: Iterable[Tensor],
        keep: Tensor,
        shown: Tensor | None = None,
        counts: Sequence[int] | None = None,
        scale: float = 1.0,
    ) -> list[BlockDetail]:
        """What each block of the UNet reads of R references in n edits.

        memories: of `memories`; keep (n,1,h,w): the mask at the latent's size, 1 = keep; shown (R,1,S,S): 1 where the
        object is, elsewhere the reference is hidden, None: all is shown; counts: references of each edit, R in all,
        None: one each; scale: strength, 0 (nothing) to 1."""
        details = []
        for block, attn, stride, memory in zip(
            self.blocks, self_attentions(unet), strides(unet), memories, strict=True
        ):
            side = math.isqrt(memory.shape[1])
            places = places_in_region(keep, stride), places_in_reference(side).to(keep.device)
            details.append(block(attn, *joined(memory, seen_at(shown, side), counts), *places, scale))
        return details


def place_stds(channels: int, heads: int) -> Tensor:
    """(channels,): of the rows of *_place at first, equal within a head, by equal factors from head to head."""
    return torch.logspace(*map(math.log10, PLACE_STDS), heads).repeat_interleave(channels // heads)


def self_attentions(unet: UNetModel) -> list[CrossAttention]:
    """attn1 of every transformer block, in the order in which they run."""
    return [block.attn1 for block in layers_of(unet, BasicTransformerBlock)]


def seen_at(shown: Tensor | None, side: int) -> Tensor | None:
    """shown (R,1,S,S), 1 where the object is -> (R,side*side) bool: cells of a grid that the object covers by half."""
    if shown is None:
        return None
    return (F.interpolate(shown, (side, side), mode="area") >= 0.5).flatten(1)


def joined(memory: Tensor, seen: Tensor | None, counts: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
    """memory (R,M,E) and seen (R,M) of R references -> (n,K M,E) and (n,K M) of n edits, K the largest of counts; what
    an edit has fewer is hidden."""
    if counts is None or max(counts) == 1:
        return memory, seen
    if seen is None and min(counts) < max(counts):
        seen = memory.new_ones(memory.shape[:2], dtype=torch.bool)
    memory, seen = (
        None if x is None else pad_sequence([part.flatten(0, 1) for part in x.split(list(counts))], batch_first=True)
        for x in (memory, seen)
    )
    return memory, seen
