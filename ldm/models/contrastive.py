"""CLIP in training (Radford et al. 2021), where there is none to start from: for the small world's pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ldm.models.trained import Trained


class Contrastive(Trained):
    """Images and captions of a batch find each other: cross-entropy of the cosines, both ways, times a learned factor.
    Where captions are the same, each of their images fits each of them.

    vision_config, text_config: mappings for transformers' CLIPVisionConfig and CLIPTextConfig. projection_dim: of the
    common space. Batches: `image` (B,3,S,S), CLIP-normalised, `caption` (B,L), tokens, the last of them the largest."""

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

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        captions = batch["caption"]
        logits = self.clip(input_ids=captions, pixel_values=batch["image"]).logits_per_image.float()
        same = (captions[:, None] == captions).all(dim=-1).float()
        target = same / same.sum(dim=1)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self.log(
            "train/loss", loss.detach(), on_step=True, prog_bar=True, sync_dist=True, batch_size=len(batch["image"])
        )
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss_of(batch), on_epoch=True, sync_dist=True, batch_size=len(batch["image"]))

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss_of(batch), on_epoch=True, sync_dist=True, batch_size=len(batch["image"]))

    @torch.no_grad()
    def write(self, folder: str | os.PathLike) -> None:
        """config.json and model.safetensors, transformers' layout of CLIP."""
        self.clip.save_pretrained(Path(folder), safe_serialization=True)
