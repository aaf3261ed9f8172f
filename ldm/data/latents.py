"""Training samples that the frozen networks have already encoded: the cached latents of scripts/prepare_latents.py.

    <dataset_dir>/latents/<split>-00000.safetensors, ...   the encoded samples of some pictures, in half precision
    <dataset_dir>/latents/<split>.json                     how they were made (Description)

A sample on pictures is a function of (seed, epoch, i); here those of the first epochs are kept, and later epochs show
them again. Noise, timesteps and dropped conditions are not kept: they are drawn anew in every step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.index import MissingSplit
from ldm.data.sample import Recipe
from ldm.util import UserError

FOLDER = "latents"
CURE = "make it with scripts/prepare_latents.py"


@dataclass(frozen=True)
class Description:
    """The content of <split>.json.

    networks: fingerprint of the autoencoder and CLIP
    recipe: the fields of ldm.data.sample.Recipe
    seed: of the draws
    pictures: in the split; epochs: draws of each picture
    per_shard: pictures in a shard, except the last one
    precision: of the networks, a name of torch's types
    detail: what the references of a detail path were encoded by, DetailPath.encoding; None without a path"""

    networks: str
    recipe: dict[str, Any]
    seed: int
    pictures: int
    epochs: int
    per_shard: int
    precision: str
    detail: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path, split: str) -> Description:
        """Raises MissingSplit: no such file; UserError: a damaged one."""
        path = folder / f"{split}.json"
        try:
            found = cls(**json.loads(path.read_text()))
            defaults = {each.name: each.default for each in fields(Recipe)}  # of fields that an older file lacks
            return replace(found, recipe={**defaults, **found.recipe})
        except FileNotFoundError as error:
            raise MissingSplit(f"{path} does not exist: {CURE}") from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): {CURE}") from error

    def write(self, folder: Path, split: str) -> None:
        (folder / f"{split}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    def shard_path(self, folder: Path, split: str, number: int) -> Path:
        """A shard: the draws of `per_shard` pictures, row epoch * (pictures in the shard) + position."""
        return folder / f"{split}-{number:05}.safetensors"

    @property
    def shards(self) -> int:
        return -(-self.pictures // self.per_shard)


class LatentDataset(Dataset):
    """`dataset[epoch, i]` -> the encoded sample of OpenImageDataset's `[epoch % epochs, i]`, in half precision; see
    LatentDiffusion.encode_batch for its keys. A run on it sees the same samples in the same order as on pictures.

    dataset_dir: the folder with latents/. The recipe's parameters are those of OpenImageDataset and must be the ones
    that the samples were made with; seed has no effect. Raises UserError: not prepared, made otherwise, a damaged
    shard."""

    def __init__(
        self,
        state: str,
        dataset_dir: str | Path = "dataset/open-images",
        arbitrary_mask_percent: float = 0.5,
        image_size: int = 512,
        reference_augmentation: bool | str = True,
        mask_augmentation: bool = True,
        exact: bool = False,
        seed: int = 0,
        pair_share: float = 0.0,
        object_masks: bool = False,
    ):
        recipe = Recipe(
            *(arbitrary_mask_percent, image_size, reference_augmentation, mask_augmentation, exact, pair_share),
            object_masks,
        )
        self.state, self.folder, self.seed = state, Path(dataset_dir) / FOLDER, seed
        self.description = Description.read(self.folder, state)
        require_recipe(self.folder / f"{state}.json", self.description.recipe, asdict(recipe))
        missing = [path for path in self._paths() if not path.exists()]
        if missing:
            raise UserError(f"{missing[0]} does not exist: {CURE}, which continues where it stopped")
        self._open: dict[int, Any] = {}

    def _paths(self) -> list[Path]:
        return [self.path(i) for i in range(0, self.description.pictures, self.description.per_shard)]

    def __len__(self) -> int:
        return self.description.pictures

    def path(self, i: int) -> Path:
        """The shard that holds the i-th picture's samples."""
        return self.description.shard_path(self.folder, self.state, i // self.description.per_shard)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = key if isinstance(key, tuple) else (0, key)
        if not 0 <= i < len(self):
            raise IndexError(i)
        d = self.description
        number, position = divmod(i, d.per_shard)
        in_shard = min(d.per_shard, d.pictures - number * d.per_shard)
        row = epoch % d.epochs * in_shard + position
        try:
            shard = self._shard(number)
            return {name: shard[name][row] for name in shard}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path(i)} cannot be read ({error}): remove it and {CURE}") from error

    def _shard(self, number: int) -> Mapping[str, Any]:
        """The shard's tensors, mapped into memory at the first use in each process."""
        if number not in self._open:
            file = safe_open(self.description.shard_path(self.folder, self.state, number), "pt")
            self._open[number] = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files stay in their process


def require_recipe(path: Path, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError if latents were made by another recipe than the config's."""
    for name, value in wanted.items():
        if made.get(name) != value:
            raise UserError(
                f"{path} was made with {name} {made.get(name)} but the config has {value}: make it again with "
                "scripts/prepare_latents.py, or change the config"
            )


def half(encoded: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What a shard keeps of an encoded batch: float16, within whose range log variances and features lie."""
    return {name: tensor.half().cpu().numpy() for name, tensor in encoded.items()}
