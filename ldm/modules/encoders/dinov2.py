"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), from the hub or a folder."""

from __future__ import annotations

import functools
from typing import Any

from ldm.modules.pretrained import load_pretrained

DINOV2 = "dinov2"  # the one of the hub
REPO = "facebook/dinov2-base"
GRID = 16  # patches along a side of what it sees: 224 pixels with patches of 14


@functools.lru_cache(maxsize=2)  # a judge's and a detail path's
def load_dinov2(name: str, source: str, others: str = "") -> Any:
    """transformers' Dinov2Model, frozen. source: "dinov2", which downloads it once, or a folder; name, others: of
    messages, see load_pretrained. Raises UserError."""
    from transformers import Dinov2Model

    (network,) = load_pretrained(name, "hub" if source == DINOV2 else source, REPO, Dinov2Model, others=others)
    return network.eval().requires_grad_(False)


def dinov2_side(network: Any) -> int:
    """Of the pictures that it sees, in pixels."""
    return GRID * network.config.patch_size
