"""The small world's oracle: a classifier that finds an object's shape, pattern and colours in its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.shapes import SHAPES
from ldm.models.base import LossModel


class Oracle(nn.Module):
    """A picture of an object (B,3,S,S) in [0,1] -> logits of its shape (B,12) and of its pattern (B,6), and its two
    colours (B,2,3), Lab over 100, in either order; they are equal for a solid object.

    channels: of the stages, each of two convolutions and a pooling that halves the picture."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 160)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [
                nn.Conv2d(after, after, 3, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels[-1], len(SHAPES) + len(PATTERNS) + 6)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(2 * image - 1)
        x = self.head(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))
        return split_answers(x)


def split_answers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle's answers as one tensor (B,24) -> shape (B,12), pattern (B,6), colours (B,2,3)."""
    shape, pattern, colours = x.split([len(SHAPES), len(PATTERNS), 6], dim=1)
    return shape, pattern, colours.unflatten(1, (2, 3))


def colour_error(colours: Tensor, wanted: Tensor) -> Tensor:
    """(B,2,3) twice, Lab over 100 -> (B,) Delta E (CIE 1976), the mean over two colours, in the order with less
    error."""
    same = (colours - wanted).norm(dim=-1).mean(dim=1)
    swapped = (colours.flip(1) - wanted).norm(dim=-1).mean(dim=1)
    return 100 * torch.minimum(same, swapped)


class OracleTraining(LossModel):
    """The oracle in training: cross-entropy of shape and of pattern, and the distance of the colours. Batches: those of
    RegionCrops."""

    def __init__(self, monitor: str | None = "val/loss", scheduler_config: Mapping[str, Any] | None = None):
        super().__init__()
        self.monitor, self.scheduler_config = monitor, scheduler_config
        self.oracle = Oracle()

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """loss; shape and pattern: the shares recognised; colour_error: Delta E."""
        shape, pattern, colours = self.oracle(batch["image"])
        error = colour_error(colours.float(), batch["colours"]).mean()
        loss = F.cross_entropy(shape, batch["shape"]) + F.cross_entropy(pattern, batch["pattern"]) + 0.05 * error
        return {
            "loss": loss,
            "shape": (shape.argmax(dim=1) == batch["shape"]).float().mean(),
            "pattern": (pattern.argmax(dim=1) == batch["pattern"]).float().mean(),
            "colour_error": error,
        }
