"""The recogniser of individuals, trained as face verification is: an embedding in which pictures of one individual are
near each other, and those of its look-alikes are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.base import LossModel

SCALE, MARGIN = 16.0, 0.2  # s and m of the loss


class Recogniser(nn.Module):
    """A picture of an object (B,3,64,64) in [0,1] -> its embedding (B,width), of length 1.

    channels: of the stages. Each has two convolutions, and a pooling between it and the next; the first convolution
    halves the picture, too. The 4 x 4 places that remain are not pooled, since individuals differ in where their
    details are."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 128), width: int = 128):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((3, *channels), channels, strict=False)):
            first = nn.Conv2d(before, after, 3, padding=1) if i else nn.Conv2d(before, after, 5, stride=2, padding=2)
            layers += [first, nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.MaxPool2d(2)] if i < len(channels) - 1 else []
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(16 * channels[-1], width)

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.head(self.body(2 * image - 1).flatten(1)).float(), dim=1)


def margin_loss(cosines: Tensor, scale: float = SCALE, margin: float = MARGIN) -> Tensor:
    """The large margin cosine loss (CosFace, Wang et al. 2018, equation 4), the mean over B pictures.

    cosines (B,B): of each picture's embedding and each individual's; the i-th picture shows the i-th individual."""
    own = torch.eye(len(cosines), device=cosines.device)
    return F.cross_entropy(scale * (cosines - margin * own), torch.arange(len(cosines), device=cosines.device))


class RecogniserTraining(LossModel):
    """The recogniser in training. Batches: those of FamilyCrops.

    An individual is represented by the mean embedding of its other views in the batch (as in prototypical networks,
    Snell et al. 2017), not by a learned vector, as later by the mean embedding of its views in a gallery. So the loss
    means the same for individuals that training does not show."""

    def __init__(self, monitor: str | None = "val/loss", scheduler_config: Mapping[str, Any] | None = None):
        super().__init__()
        self.monitor, self.scheduler_config = monitor, scheduler_config
        self.recogniser = Recogniser()

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """loss; top1: the share of crops that are nearest to the other views of their own individual."""
        images = batch["image"].flatten(0, 1)  # (individuals,views,3,S,S)
        embeddings = self.recogniser(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        others = F.normalize(embeddings.sum(dim=1, keepdim=True) - embeddings, dim=-1)
        cosines = torch.einsum("ivd,jvd->vij", embeddings, others)
        right = cosines.argmax(dim=2) == torch.arange(len(images), device=cosines.device)
        return {"loss": torch.stack([margin_loss(each) for each in cosines]).mean(), "top1": right.float().mean()}
