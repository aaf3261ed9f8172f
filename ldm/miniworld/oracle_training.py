"""The small world's oracle in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ldm.miniworld.oracle import Oracle, colour_error
from ldm.models.base import LossModel


class OracleTraining(LossModel):
    """Cross-entropy of shape and pattern, and the distance of the colours. Batches: those of RegionCrops."""

    def __init__(self, monitor: str | None = "val/loss", scheduler_config: Mapping[str, Any] | None = None):
        super().__init__()
        self.monitor, self.scheduler_config = monitor, scheduler_config
        self.oracle = Oracle()

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """loss; shape and pattern, the share told right; colour_error, Delta E."""
        shape, pattern, colours = self.oracle(batch["image"])
        error = colour_error(colours.float(), batch["colours"]).mean()
        loss = F.cross_entropy(shape, batch["shape"]) + F.cross_entropy(pattern, batch["pattern"]) + 0.05 * error
        return {
            "loss": loss,
            "shape": (shape.argmax(dim=1) == batch["shape"]).float().mean(),
            "pattern": (pattern.argmax(dim=1) == batch["pattern"]).float().mean(),
            "colour_error": error,
        }
