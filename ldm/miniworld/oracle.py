"""The small world's oracle: a classifier that tells what an object is from its picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Oracle(nn.Module):
    """A picture of an object (B,3,S,S) in [0,1] -> logits of its shape (B,shapes) and of its pattern (B,patterns), and
    its two colours (B,2,3), Lab over 100, in either order; of a solid object both are the same.

    channels: of each convolution; each halves the picture."""

    def __init__(self, shapes: int = 12, patterns: int = 6, channels: Sequence[int] = (32, 64, 128, 160)):
        super().__init__()
        self.shapes, self.patterns = shapes, patterns
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
        self.head = nn.Linear(2 * channels[-1], shapes + patterns + 6)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(2 * image - 1)
        x = self.head(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))
        shape, pattern, colours = x.split([self.shapes, self.patterns, 6], dim=1)
        return shape, pattern, colours.unflatten(1, (2, 3))


def colour_error(colours: Tensor, wanted: Tensor) -> Tensor:
    """(B,2,3) twice, Lab over 100 -> (B,) Delta E (CIE 1976), the mean over two colours, in the better order."""
    same = (colours - wanted).norm(dim=-1).mean(dim=1)
    swapped = (colours.flip(1) - wanted).norm(dim=-1).mean(dim=1)
    return 100 * torch.minimum(same, swapped)
