"""OpenImageDataset: the pictures and boxes of one split, as training samples."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.index import BoxIndex
from ldm.data.sample import Recipe, Sample, View
from ldm.data.views import require_pairs
from ldm.images import PictureFile
from ldm.storage import Place, StorageError
from ldm.util import UserError

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 100  # unusable pictures in a row that make the split unusable


class OpenImageDataset(Dataset):
    """`dataset[i]` or `dataset[epoch, i]` -> the batch entry of ldm/data/sample.py, made from the i-th picture and
    one of its boxes.

    The entry is a function of (seed, epoch, i) and does not depend on the number of workers. An unusable picture (a
    missing or damaged file, no box inside the picture) is replaced by another one, drawn from the same random numbers,
    and logged once; `unusable_count` counts such pictures over all worker processes.

    state: train, validation or test. dataset_dir: the folder in which scripts/read_bbox.py wrote bbox/. The other
    parameters are those of Recipe.
    Raises UserError: the split is not prepared; it has no pairs, and pair_share is above 0; all pictures, or
    MAX_ATTEMPTS in a row, are unusable."""

    def __init__(
        self,
        state: str,
        dataset_dir: str | Place = "dataset/open-images",
        arbitrary_mask_percent: float = 0.5,
        image_size: int = 512,
        reference_augmentation: bool | str = True,
        mask_augmentation: bool = True,
        exact: bool = False,
        seed: int = 0,
        pair_share: float = 0.0,
        object_masks: bool = False,
    ):
        self.recipe = Recipe(
            *(arbitrary_mask_percent, image_size, reference_augmentation, mask_augmentation, exact, pair_share),
            object_masks,
        )
        self.index = BoxIndex(dataset_dir, state)
        require_pairs(pair_share, self.index.arrays, f"the {state} index of {self.index.root}")
        self.seed = seed
        self._unusable = torch.zeros(len(self.index), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        return self.sample(key).entry

    def path(self, i: int) -> Place:
        """The file of the i-th picture."""
        return self.index.path(i)

    @property
    def unusable_count(self) -> int:
        """How many pictures have been found unusable so far."""
        return int(self._unusable.sum())

    def sample(self, key: int | tuple[int, int]) -> Sample:
        """The entry of `dataset[key]` with its picture and geometry."""
        epoch, i = key if isinstance(key, tuple) else (0, key)
        if not 0 <= i < len(self):
            raise IndexError(i)
        rng = np.random.default_rng((self.seed, epoch, i))
        try:
            return self._make(i, rng)
        except StorageError:  # it would replace every picture
            raise
        except UserError as error:
            unusable = {i: error}
        for other in rng.choice(len(self), min(len(self), MAX_ATTEMPTS), replace=False).tolist():
            try:
                sample = self._make(other, rng)
            except UserError as error:
                unusable[other] = error
            else:
                self._log_unusable(unusable)
                return sample
        raise UserError(
            f"{len(unusable)} {self.index.split} pictures of {self.index.root} in a row cannot be used (the last one: "
            f"{unusable.popitem()[1]}): if they were moved, run scripts/read_bbox.py again"
        )

    def _make(self, i: int, rng: np.random.Generator) -> Sample:
        path, boxes = self.index[i]
        return self.recipe.sample(PictureFile(path), boxes, rng, partial(self._another_view, i))

    def _another_view(self, i: int, j: int, rng: np.random.Generator) -> View | None:
        drawn = self.index.other_view(i, j, rng)
        return drawn and View(PictureFile(drawn[0]), drawn[1])

    def _log_unusable(self, unusable: dict[int, UserError]) -> None:
        for i, error in unusable.items():
            if not self._unusable[i]:
                self._unusable[i] = 1
                log.warning("%s (replaced by another picture)", error)
