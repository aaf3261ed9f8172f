"""A split as tar shards (WebDataset's format), for storage that is slow with many single files.

    <dataset_dir>/shards/<split>-00000.tar, ...   <number>.<jpg, png, ...>, <number>.json (path and boxes) and, of
                                                  pictures that have one, <number>.mask.png (object_masks.py)
    <dataset_dir>/shards/<split>.json             the number of pictures in each shard

Pictures are in random order. <number> is the picture's position in the split's index; its sample is the same as
OpenImageDataset's. Pictures that serve only as references are in the last shards; for references from other pictures,
packed_views.py keeps where each picture is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from ldm.data.index import BoxIndex, MissingSplit, index_path
from ldm.data.object_masks import mask_bytes
from ldm.data.packed_views import MASK, PackedViews, write_places
from ldm.data.sample import Recipe
from ldm.data.views import require_pairs
from ldm.files import staging
from ldm.images import PictureFile
from ldm.storage import Place, StorageError, Url, opened, place
from ldm.util import UserError, require

log = logging.getLogger(__name__)

SHUFFLE_BUFFER = 200  # encoded pictures from which a worker draws the next one


@dataclass(frozen=True)
class Description:
    """The content of <split>.json. index: fingerprint of the index that the shards are made from; shards: their number
    when all are finished; counts: pictures in each finished shard; references: number of shards, at the end, whose
    pictures serve only as references."""

    index: str
    shards: int
    counts: list[int]
    references: int = 0

    @classmethod
    def read(cls, folder: Place, split: str) -> Description:
        """Raises MissingSplit: no such file; UserError: a damaged one."""
        path = folder / f"{split}.json"
        try:
            found = json.loads(path.read_text())
            if not isinstance(found["index"], str) or found["counts"] != [int(count) for count in found["counts"]]:
                raise ValueError("it does not describe shards")
            return cls(found["index"], int(found["shards"]), found["counts"], int(found.get("references", 0)))
        except FileNotFoundError as error:
            raise MissingSplit(f"{path} does not exist: make it with scripts/read_bbox.py --shards") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): make it with scripts/read_bbox.py --shards") from error


def pack(root: Place, split: str, pictures_per_shard: int) -> list[Place]:
    """Write the shards of a prepared split -> their paths. Pictures that cannot be opened are skipped and logged.

    Each shard is written atomically. After an interruption the finished shards are kept, unless the index has changed.
    Raises UserError: the split is not prepared, the disk is full."""
    assert pictures_per_shard > 0
    index = BoxIndex(root, split)
    order = np.random.default_rng(0).permutation(len(index))
    parts = np.array_split(order, -(-len(index) // pictures_per_shard))
    only_references = np.arange(len(index), len(index.arrays["path_ends"]))
    starts = range(0, len(only_references), pictures_per_shard)
    parts += [only_references[start : start + pictures_per_shard] for start in starts]
    fingerprint, counts = _fingerprint(index), []
    folder = root / "shards"
    paths = [folder / f"{split}-{number:05}.tar" for number in range(len(parts))]
    try:
        old = Description.read(folder, split)
    except UserError:  # missing or damaged
        old = None
    if old is not None and (old.index, old.shards) == (fingerprint, len(parts)):
        counts = old.counts[: next((i for i, path in enumerate(paths) if not path.exists()), None)]
    else:
        (folder / f"{split}.json").unlink(missing_ok=True)
        for path in folder.files() if isinstance(folder, Url) else sorted(folder.glob("*.*")):
            if re.fullmatch(rf"{split}-.*\.(tar|npy|npz)", path.name):
                path.unlink()
    if "views" in index.arrays:
        with staging(folder) as temporary:
            np.savez(temporary / f"{split}-views.npz", **index.arrays)
    done = len(counts)
    for path, part in zip(tqdm(paths[done:], desc=f"{split} shards", unit="shard"), parts[done:], strict=True):
        with staging(folder) as temporary:
            counts.append(_write_shard(temporary / path.name, index, part.tolist()))
            if "views" in index.arrays:
                write_places(temporary / path.name)
            description = Description(fingerprint, len(parts), counts, len(starts))
            (temporary / f"{split}.json").write_text(json.dumps(asdict(description)))
    return paths


def _fingerprint(index: BoxIndex) -> str:
    digest = hashlib.sha256()
    for name in sorted(index.arrays):
        digest.update(np.ascontiguousarray(index.arrays[name]).data)
    return digest.hexdigest()


def is_stale(root: Place, split: str) -> bool:
    """Whether the split has shards that were made from another index than its current one."""
    if not (root / "shards" / f"{split}.json").exists() or not index_path(root, split).exists():
        return False
    return Description.read(root / "shards", split).index != _fingerprint(BoxIndex(root, split))


def _write_shard(path: Path, index: BoxIndex, numbers: list[int]) -> int:
    """Write these pictures of the index -> how many could be opened."""
    webdataset = require("webdataset", "train")
    count = 0
    with open(path, "wb") as file, webdataset.TarWriter(file, mtime=0) as shard:
        for i in numbers:
            picture = index.path(i)
            try:
                opened = PictureFile(picture)
            except UserError as error:
                log.warning("%s (skipped)", error)
                continue
            facts = {"path": str(picture), "boxes": index[i][1].tolist() if i < len(index) else []}
            kind = opened.header.format.lower().replace("jpeg", "jpg")
            mask = mask_bytes(picture)
            packed = {} if mask is None else {MASK: mask}
            shard.write({"__key__": f"{i:09}", kind: opened.data, "json": facts, **packed})
            count += 1
    return count


class ShardDataset(IterableDataset):
    """The samples of a split, read from its shards; the parameters are those of OpenImageDataset.

    `divide` divides the shards among processes and workers: in every epoch each of them gets the same number of shards
    and samples, and no sample is read twice. The remainder is left out, a different one in every epoch.
    Raises UserError: no shards, fewer shards than workers; while reading: a damaged shard, no usable picture."""

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
        require("webdataset", "train")  # if it is missing, fail here and not in a worker process
        self.seed, self.state, self.folder = seed, state, place(dataset_dir) / "shards"
        description = Description.read(self.folder, state)
        self.counts = description.counts[: description.shards - description.references]
        self.shards = [number for number, count in enumerate(self.counts) if count]
        if len(description.counts) < description.shards or not self.shards:
            raise UserError(
                f"the {state} shards in {self.folder} are incomplete: run scripts/read_bbox.py --shards again"
            )
        if is_stale(place(dataset_dir), state):
            log.warning(
                "the shards in %s were made from an earlier index: make them again with scripts/read_bbox.py --shards",
                self.folder,
            )
        self.views = PackedViews(self.folder, state, description.shards) if pair_share else None
        if self.views:
            require_pairs(pair_share, self.views.arrays, f"the {state} shards in {self.folder}")
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # worker processes see it change
        self.divide()

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration belongs to, in worker processes too."""
        self._epoch[0] = epoch

    def max_workers(self, world: int) -> int:
        """How many workers each of `world` processes can have, with one shard per worker."""
        return len(self.shards) // world

    def divide(self, rank: int = 0, world: int = 1, workers: int = 1, batch_size: int = 1) -> None:
        """rank: of this process among `world`; workers: per process; each of them yields whole batches.

        Raises UserError: too few shards."""
        self.rank, self.world, self.workers = rank, world, workers
        self.shards_each = len(self.shards) // (world * workers)
        smallest = min(self.counts[number] for number in self.shards)
        self.samples_each = self.shards_each * smallest // batch_size * batch_size
        if not self.samples_each:
            raise UserError(
                f"{len(self.shards)} {self.state} shards of {smallest} pictures in {self.folder} are too few for "
                f"{world} x {workers} workers in batches of {batch_size}: use fewer workers or smaller shards"
            )

    def __len__(self) -> int:
        """Samples of this process in an epoch."""
        return self.samples_each * self.workers

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        assert workers == self.workers, "call divide() with the loader's number of workers"
        epoch = int(self._epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.shards)
        position = self.rank * workers + worker
        own = order[position * self.shards_each : (position + 1) * self.shards_each].tolist()
        return islice(self._samples(own, epoch, position), self.samples_each)

    def _samples(self, shards: list[int], epoch: int, position: int) -> Iterator[dict[str, Tensor]]:
        """One sample per picture of the shards; an unusable picture is replaced by a repetition of another sample."""
        order = random.Random(f"{self.seed} {epoch} {position}")
        files = require("webdataset", "train").shuffle(SHUFFLE_BUFFER, rng=order)(self._files(shards))
        last, missing = None, 0
        for file in _translate_errors(files, self.folder):
            facts, mask = json.loads(file.pop("json")), file.pop(MASK, None)
            data = next(value for name, value in file.items() if not name.startswith("__"))
            number = int(file["__key__"])
            rng = np.random.default_rng((self.seed, epoch, number))
            another_view = partial(self.views.another, number) if self.views else None
            try:
                picture = PictureFile(facts["path"], data, mask)
                last = self.recipe.sample(picture, np.array(facts["boxes"], np.int64), rng, another_view).entry
            except StorageError:
                raise
            except UserError as error:
                log.warning("%s (replaced by another picture)", error)
                if last is None:
                    missing += 1
                    continue
            for _ in range(1 + missing):
                yield last
            missing = 0
        if last is None:
            raise UserError(
                f"no picture of {len(shards)} {self.state} shards in {self.folder} can be used: make them again"
            )

    def _files(self, shards: list[int]) -> Iterator[dict]:
        tariterators = require("webdataset.tariterators", "train")
        for number in shards:
            path = self.folder / f"{self.state}-{number:05}.tar"
            with opened(path) as stream:  # webdataset would read a name as a URL
                files = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
                yield from tariterators.group_by_keys(files)


def _translate_errors(files: Iterator[dict], folder: Place) -> Iterator[dict]:
    """The same files; an error while reading them becomes a UserError."""
    try:
        yield from files
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"a shard in {folder} cannot be read ({error}): make it again with scripts/read_bbox.py --shards"
        ) from error
