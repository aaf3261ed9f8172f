"""CLIP in training (Radford et al. 2021), where there is none to start from: for the small world's pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ldm.models.trained import ByLosses


class Contrastive(ByLosses):
    """Images and captions of a batch find each other: cross-entropy of the cosines, both ways, times a learned factor.
    Where captions are the same, each of their images fits each of them. An image may have several captions, of which
    some say less: each is compared with its like, so that what few captions need to be told apart is learned too.

    vision_config, text_config: mappings for transformers' CLIPVisionConfig and CLIPTextConfig. projection_dim: of the
    common space. Batches: `image` (B,3,S,S), CLIP-normalised; `caption` (B,K,L), tokens, the last is the largest."""

    def __init__(
        self,
        vision_config: Mapping[str, Any],
        text_config: Mapping[str, Any],
        projection_dim: int = 512,
        monitor: str | None = "val/loss",
        scheduler_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.monitor, self.scheduler_config = monitor, scheduler_config
        config = {"vision_config": dict(vision_config), "text_config": dict(text_config)}
        self.clip = CLIPModel(CLIPConfig(**config, projection_dim=projection_dim))

    def losses_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        captions = batch["caption"].unbind(dim=1)
        out = self.clip(input_ids=torch.cat(captions), pixel_values=batch["image"])
        logits = out.logits_per_image.float().chunk(len(captions), dim=1)
        return {"loss": sum(map(_loss, logits, captions)) / len(captions)}

    def export(self, folder: Path) -> None:
        """clip/config.json and clip/model.safetensors, transformers' layout of CLIP."""
        self.clip.save_pretrained(folder / "clip")


def _loss(logits: Tensor, captions: Tensor) -> Tensor:
    """logits (B,B), images by captions (B,L)."""
    same = (captions[:, None] == captions).all(dim=-1).float()
    target = same / same.sum(dim=1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
