"""A split as tar shards (WebDataset's format), for data that no one disk or file system likes as single files.

    <dataset_dir>/shards/<split>-00000.tar, ...   <number>.<jpg or another kind> and <number>.json (path and boxes)
    <dataset_dir>/shards/<split>.json             how many pictures each shard holds

Pictures are in random order. <number> is the picture's place in the split's index, and the sample made of it is the one
that OpenImageDataset makes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm
from webdataset.tariterators import group_by_keys, tar_file_expander

from ldm.data.index import BoxIndex, index_path
from ldm.data.sample import Recipe
from ldm.files import staging
from ldm.images import PictureFile
from ldm.util import UserError

log = logging.getLogger(__name__)

BUFFER = 200  # pictures, as files, among which a worker draws the next one


def pack(root: Path, split: str, pictures_per_shard: int) -> list[Path]:
    """Writes the shards of a prepared split; pictures that cannot be opened are left out, and logged.

    A shard is whole or absent, and after an interruption those that are there are kept, unless the index has changed.
    Raises UserError: the split is not prepared, the disk is full."""
    assert pictures_per_shard > 0
    index = BoxIndex(root, split)
    order = np.random.default_rng(0).permutation(len(index))
    parts = np.array_split(order, -(-len(index) // pictures_per_shard))
    description = {"index": _fingerprint(index), "shards": len(parts), "counts": []}
    folder = root / "shards"
    paths = [folder / f"{split}-{number:05}.tar" for number in range(len(parts))]
    try:
        old = _description(folder, split)
    except UserError:  # none, or a damaged one
        old = {}
    if (old.get("index"), old.get("shards")) == (description["index"], len(parts)):
        description["counts"] = old["counts"][: next((i for i, path in enumerate(paths) if not path.exists()), None)]
    else:
        (folder / f"{split}.json").unlink(missing_ok=True)
        for path in folder.glob(f"{split}-*.tar"):
            path.unlink()
    done = len(description["counts"])
    for path, part in zip(tqdm(paths[done:], desc=f"{split} shards", unit="shard"), parts[done:], strict=True):
        with staging(folder) as temporary:
            description["counts"].append(_write_shard(temporary / path.name, index, part.tolist()))
            (temporary / f"{split}.json").write_text(json.dumps(description))
    return paths


def _fingerprint(index: BoxIndex) -> str:
    digest = hashlib.sha256()
    for name in sorted(index.arrays):
        digest.update(np.ascontiguousarray(index.arrays[name]).data)
    return digest.hexdigest()


def stale(root: Path, split: str) -> bool:
    """Are there shards of the split, but of another index than the one that is there?"""
    if not (root / "shards" / f"{split}.json").exists() or not index_path(root, split).exists():
        return False
    return _description(root / "shards", split)["index"] != _fingerprint(BoxIndex(root, split))


def _write_shard(path: Path, index: BoxIndex, numbers: list[int]) -> int:
    """-> how many pictures it holds."""
    count = 0
    with open(path, "wb") as file, webdataset.TarWriter(file, mtime=0) as shard:
        for i in numbers:
            picture, boxes = index[i]
            try:
                opened = PictureFile(picture)
            except UserError as error:
                log.warning("%s (left out)", error)
                continue
            facts = {"path": str(picture), "boxes": boxes.tolist()}
            kind = opened.header.format.lower().replace("jpeg", "jpg")
            shard.write({"__key__": f"{i:09}", kind: opened.data, "json": facts})
            count += 1
    return count


def _description(folder: Path, split: str) -> dict:
    path = folder / f"{split}.json"
    try:
        found = json.loads(path.read_text())
        assert isinstance(found["index"], str) and found["counts"] == [int(count) for count in found["counts"]]
        return {"index": found["index"], "shards": int(found["shards"]), "counts": found["counts"]}
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); make it with scripts/read_bbox.py --shards") from error


class ShardDataset(IterableDataset):
    """The samples of a split, read from its shards; the arguments are those of OpenImageDataset.

    `divide` says between how many processes and workers; every epoch each of them gets equally many shards and samples,
    none that another one gets. What does not divide evenly is left out of that epoch, which are other shards in each.
    Raises UserError: no shards, fewer than there are workers in all; when read: a damaged shard, no usable picture."""

    def __init__(
        self, state: str, dataset_dir: str = "dataset/open-images", *recipe: Any, seed: int = 0, **options: Any
    ):
        self.recipe = Recipe(*recipe, **options)
        self.seed, self.state, self.folder = seed, state, Path(dataset_dir) / "shards"
        description = _description(self.folder, state)
        self.counts = description["counts"]
        self.shards = [number for number, count in enumerate(self.counts) if count]
        if len(self.counts) < description["shards"] or not self.shards:
            raise UserError(f"{self.folder}: its {state} shards are not complete; finish scripts/read_bbox.py --shards")
        if stale(Path(dataset_dir), state):
            log.warning("%s: are of an earlier index; pack them anew with scripts/read_bbox.py --shards", self.folder)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # worker processes see it change
        self.divide()

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def most_workers(self, world: int) -> int:
        """How many workers each of `world` processes can have at most, with a shard for each."""
        return len(self.shards) // world

    def divide(self, rank: int = 0, world: int = 1, workers: int = 1, batch_size: int = 1) -> None:
        """rank: of this process among `world`; workers: in each process; each gives whole batches."""
        self.rank, self.world, self.workers = rank, world, workers
        self.shards_each = len(self.shards) // (world * workers)
        smallest = min(self.counts[number] for number in self.shards)
        self.samples_each = self.shards_each * smallest // batch_size * batch_size
        if not self.samples_each:
            raise UserError(
                f"{self.folder}: {len(self.shards)} {self.state} shards of {smallest} pictures do not go round between "
                f"{world} x {workers} workers in batches of {batch_size}; use fewer workers or smaller shards"
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
        place = self.rank * workers + worker
        mine = order[place * self.shards_each : (place + 1) * self.shards_each].tolist()
        return islice(self._samples(mine, epoch, place), self.samples_each)

    def _samples(self, shards: list[int], epoch: int, place: int) -> Iterator[dict[str, Tensor]]:
        """One sample per picture of the shards. In the place of an unusable one the one before it comes again."""
        shuffle = webdataset.shuffle(BUFFER, rng=random.Random(f"{self.seed} {epoch} {place}"))
        files = shuffle(self._files(shards))
        last, owed = None, 0
        for file in _reading(files, self.folder):
            facts = json.loads(file["json"])
            data = next(value for name, value in file.items() if not name.startswith("__") and name != "json")
            rng = np.random.default_rng((self.seed, epoch, int(file["__key__"])))
            try:
                picture = PictureFile(facts["path"], data)
                last = self.recipe.sample(picture, np.array(facts["boxes"], dtype=np.int64), rng).entry
            except UserError as error:
                log.warning("%s (another picture takes its place)", error)
                if last is None:
                    owed += 1
                    continue
            for _ in range(1 + owed):
                yield last
            owed = 0
        if last is None:
            raise UserError(
                f"{self.folder}: no picture of {len(shards)} {self.state} shards can be used; pack them anew"
            )

    def _files(self, shards: list[int]) -> Iterator[dict]:
        for number in shards:
            path = self.folder / f"{self.state}-{number:05}.tar"
            with open(path, "rb") as stream:  # not by its name, which webdataset would take for a URL
                yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))


def _reading(files: Iterator[dict], folder: Path) -> Iterator[dict]:
    try:
        yield from files
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(f"{folder}: a shard cannot be read ({error}); pack it anew") from error
