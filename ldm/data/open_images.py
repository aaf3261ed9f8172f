"""OpenImageDataset: the pictures and boxes of one split, as training samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.index import BoxIndex
from ldm.data.sample import Recipe, Sample
from ldm.images import PictureFile
from ldm.util import UserError

log = logging.getLogger(__name__)

PATIENCE = 100  # unusable pictures in a row before the split is called unusable


class OpenImageDataset(Dataset):
    """`dataset[i]` or `dataset[epoch, i]` -> the batch entry of ldm/data/sample.py, made of the i-th picture and
    one of its boxes.

    It is a function of (seed, epoch, i), whatever the number of workers. Where a picture cannot be used (missing,
    damaged, no box in it) another one, drawn from the same numbers, takes its place; `broken` counts such pictures,
    over all worker processes, and each is logged once.

    state: train, validation or test. dataset_dir: where scripts/read_bbox.py put bbox/. The rest are those of Recipe:
    arbitrary_mask_percent, image_size, reference_augmentation, mask_augmentation, exact.
    Raises UserError: the split is not prepared; 100 pictures in a row, or all, cannot be used."""

    def __init__(
        self, state: str, dataset_dir: str = "dataset/open-images", *recipe: Any, seed: int = 0, **options: Any
    ):
        self.recipe = Recipe(*recipe, **options)
        self.index = BoxIndex(dataset_dir, state)
        self.seed = seed
        self._broken = torch.zeros(len(self.index), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        return self.sample(key).entry

    def path(self, i: int) -> Path:
        """Of the i-th picture."""
        return self.index.path(i)

    @property
    def broken(self) -> int:
        """How many pictures have been found unusable."""
        return int(self._broken.sum())

    def sample(self, key: int | tuple[int, int]) -> Sample:
        epoch, i = key if isinstance(key, tuple) else (0, key)
        if not 0 <= i < len(self):
            raise IndexError(i)
        rng = np.random.default_rng((self.seed, epoch, i))
        try:
            return self._make(i, rng)
        except UserError as error:
            unusable = {i: error}
        for other in rng.choice(len(self), min(len(self), PATIENCE), replace=False).tolist():
            try:
                sample = self._make(other, rng)
            except UserError as error:
                unusable[other] = error
            else:
                self._note(unusable)
                return sample
        raise UserError(
            f"{self.index.root}: of its {self.index.split} split, {len(unusable)} pictures in a row cannot be used, "
            f"the last because: {unusable.popitem()[1]}; where they have moved, run scripts/read_bbox.py again"
        )

    def _make(self, i: int, rng: np.random.Generator) -> Sample:
        path, boxes = self.index[i]
        return self.recipe.sample(PictureFile(path), boxes, rng)

    def _note(self, unusable: dict[int, UserError]) -> None:
        for i, error in unusable.items():
            if not self._broken[i]:
                self._broken[i] = 1
                log.warning("%s (another picture takes its place)", error)
