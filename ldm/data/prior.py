"""Prior preservation (Ruiz et al. 2023, arXiv 2208.12242, section 3.2): ordinary samples among those of an object."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.shards import ShardDataset
from ldm.util import UserError

Key = tuple[int, int]  # the epoch, and the number of the sample


class WithPrior(Dataset):
    """The samples of `objects`, a share of which are replaced by samples of `prior`, others in every epoch.

    On average the loss is (1 - share) L + share L_prior: up to a factor the paper's L + λ L_prior with λ = share /
    (1 - share). Which samples are replaced, and by which, is a function of (seed, epoch, i).

    Raises UserError: a share that is not between 0 and 1, samples in shards."""

    def __init__(self, objects: Any, prior: Any, share: float):
        if not (isinstance(share, (int, float)) and 0 < share < 1):
            raise UserError(f"config: data.params.prior_share is {share}: use a number between 0 and 1")
        if isinstance(objects, ShardDataset) or isinstance(prior, ShardDataset):
            raise UserError("config: data.params.prior does not go with shards: prepare folders of pictures")
        self.objects, self.prior, self.share = objects, prior, share
        self._seed = 0

    @property
    def seed(self) -> int:
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = self.objects.seed = self.prior.seed = seed

    def __len__(self) -> int:
        return len(self.objects)

    def choose(self, key: Key) -> tuple[Any, Key]:
        """The dataset that a sample comes from, and its key there."""
        epoch, i = key
        rng = np.random.default_rng((self.seed, epoch, i, len(self.prior)))
        if rng.random() >= self.share:
            return self.objects, key
        return self.prior, (epoch, int(rng.integers(len(self.prior))))

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        dataset, own = self.choose(key)
        return dataset[own]
