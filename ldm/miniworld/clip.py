"""CLIP in training (Radford et al. 2021), where there is none to start from: for the small world's pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ldm.models.base import LossModel
from ldm.modules.encoders.clip import build_clip


class Contrastive(LossModel):
    """Images and captions of a batch find each other: cross-entropy of the cosines, both ways, times a learned factor.
    Where captions are the same, each of their images fits each of them. An image may have several captions, of which
    some say less: each is compared with its like, so that what few captions need to be told apart is learned too.

    config: open_clip's, a JSON file. Batches: `image` (B,3,S,S), CLIP-normalised; `caption` (B,K,L), tokens, of which
    the last is the largest."""

    def __init__(
        self,
        config: str,
        monitor: str | None = "val/loss",
        scheduler_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.monitor, self.scheduler_config = monitor, scheduler_config
        self.clip = build_clip(config)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        captions = batch["caption"].unbind(dim=1)
        image, text, factor = self.clip(batch["image"], torch.cat(captions))[:3]
        logits = (factor * image.float() @ text.float().T).chunk(len(captions), dim=1)
        return {"loss": sum(map(_loss, logits, captions)) / len(captions)}

    def export(self, folder: Path) -> None:
        """clip.safetensors, under open_clip's names."""
        save_file(
            {name: tensor.contiguous() for name, tensor in self.clip.state_dict().items()}, folder / "clip.safetensors"
        )


def _loss(logits: Tensor, captions: Tensor) -> Tensor:
    """logits (B,B), images by captions (B,L)."""
    same = (captions[:, None] == captions).all(dim=-1).float()
    target = same / same.sum(dim=1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
