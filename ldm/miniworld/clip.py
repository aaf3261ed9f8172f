"""Trains a CLIP from random weights (Radford et al. 2021) on pictures of the small world and their captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.files import save_tensors
from ldm.models.base import LossModel
from ldm.modules.encoders.clip import build_clip


class Contrastive(LossModel):
    """The contrastive loss: cross-entropy over a batch, images to captions and captions to images, of cosines times a
    learned factor. Where several images have the same caption, it is a target of each of them.

    An image has K captions: the first describes all of it, the others one attribute. The loss is the mean of K losses,
    one of all first captions, one of all second ones, and so on, so that every attribute by itself is learned.

    config: open_clip's, a JSON file. Batches: `image` (B,3,S,S), CLIP-normalised; `caption` (B,K,L), tokens, of which
    the end token is the largest."""

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
        return {"loss": sum(map(_contrastive_loss, logits, captions)) / len(captions)}

    def export(self, folder: Path) -> None:
        """Writes clip.safetensors, with open_clip's names."""
        save_tensors(self.clip.state_dict(), folder / "clip.safetensors")


def _contrastive_loss(logits: Tensor, captions: Tensor) -> Tensor:
    """logits (B,B): a row per image, a column per caption; captions (B,L), tokens."""
    same = (captions[:, None] == captions).all(dim=-1).float()
    target = same / same.sum(dim=1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
