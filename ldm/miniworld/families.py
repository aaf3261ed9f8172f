"""Crops of families of look-alikes: training data of the recogniser of individuals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.masks import Box
from ldm.images import PictureFile
from ldm.miniworld.crops import cut_box, moved_box, read_annotations, reduced, region_to_tensor
from ldm.miniworld.worlds import FAMILY
from ldm.util import UserError

VIEW_SIDE = 64  # pixels of a region as the recogniser sees it


@dataclass(frozen=True)
class Sighting:
    """An individual in a scene. image: relative to the data set's folder; family: what its look-alikes share."""

    image: str
    box: Box
    object: str
    family: tuple[str, ...]


def _sighting(attributes: Mapping[str, Any]) -> Sighting | None:
    """None: a shape."""
    if "shape" in attributes:
        return None
    family = (attributes["kind"], *map(str, attributes["colours"]))
    return Sighting(attributes["image"], tuple(attributes["box"]), attributes["object"], family)


class FamilyCrops(Dataset):
    """`image` (FAMILY,views,3,VIEW_SIDE,VIEW_SIDE) in [0,1]: look-alikes, and crops of each from different scenes.

    `dataset[epoch, i]` is a function of (seed, epoch, i) and shows the i-th family. A crop is reduced until its longer
    side has a random length, since regions of edits are small. augment: the box is also moved, mostly outwards, since
    an edit rarely fills its region. Shapes, and families that the split does not show in full, are left out."""

    def __init__(
        self,
        state: str,
        dataset_dir: str = "dataset/individuals",
        augment: bool = False,
        views: int = 3,
        seed: int = 0,
    ):
        self.root, self.augment, self.views, self.seed = Path(dataset_dir), augment, views, seed
        families: dict[tuple[str, ...], dict[str, list[Sighting]]] = defaultdict(lambda: defaultdict(list))
        for each in filter(None, read_annotations(dataset_dir, state, _sighting)):
            families[each.family][each.object].append(each)
        self.families = [list(family.values()) for family in families.values() if len(family) == FAMILY]
        if not self.families:
            raise UserError(f"{dataset_dir} shows no whole family of look-alikes in {state}: make it with more scenes")

    def __len__(self) -> int:
        return len(self.families)

    def path(self, i: int) -> Path:
        """A scene that shows one of the i-th family."""
        return self.root / self.families[i][0][0].image

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng((self.seed, epoch, i))
        drawn = [rng.choice(len(each), self.views, replace=len(each) < self.views) for each in self.families[i]]
        crops = [self._crop(each[n], rng) for each, own in zip(self.families[i], drawn, strict=True) for n in own]
        return {"image": torch.stack(crops).unflatten(0, (-1, self.views))}

    def _crop(self, sighting: Sighting, rng: np.random.Generator) -> Tensor:
        picture = PictureFile(self.root / sighting.image).pixels(1)
        size = picture.shape[1::-1]
        box = moved_box(sighting.box, size, rng, 0.08, 0.3) if self.augment else sighting.box
        return region_to_tensor(reduced(cut_box(picture, box), rng.uniform(28, 112)), VIEW_SIDE)
