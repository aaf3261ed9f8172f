"""The pictures in shards, each found by its number: references come from any of them (see views.py).

    <dataset_dir>/shards/<split>-views.npz        the arrays of the index
    <dataset_dir>/shards/<split>-00000.npy, ...   (k,5) int64: a shard's pictures: number, first byte, bytes, and first
                                                  byte and bytes of the picture's mask; zeros if it has none

They exist if the index has pairs.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from ldm.data.sample import View
from ldm.data.views import draw_view, path_of
from ldm.images import PictureFile
from ldm.storage import Place, read_part
from ldm.util import UserError

MASK = "mask.png"  # ending of the file of a picture's mask


def write_places(path: Path) -> None:
    """Write where a shard's pictures and their masks are, beside it."""
    found: dict[int, np.ndarray] = {}
    with tarfile.open(path) as shard:
        for member in shard:
            number, _, ending = member.name.partition(".")
            row = found.setdefault(int(number), np.array([int(number), 0, 0, 0, 0], np.int64))
            if ending != "json":
                row[slice(3, 5) if ending == MASK else slice(1, 3)] = member.offset_data, member.size
    np.save(path.with_suffix(".npy"), np.array(list(found.values()), np.int64).reshape(-1, 5))


class PackedViews:
    """Draws the views that BoxIndex draws, and reads their pictures from the shards."""

    def __init__(self, folder: Place, split: str, shards: int):
        """shards: their number. arrays: empty without pairs. Raises UserError: files are missing or damaged."""
        self.folder, self.split = folder, split
        self.arrays: dict[str, np.ndarray] = {}
        if not (folder / f"{split}-views.npz").exists():
            return
        try:
            with np.load(io.BytesIO((folder / f"{split}-views.npz").read_bytes())) as arrays:
                self.arrays = dict(arrays)
            self.places = np.zeros((len(self.arrays["path_ends"]), 5), np.int64)  # shard, then as in the files
            for shard in range(shards):
                found = np.load(io.BytesIO((folder / f"{split}-{shard:05}.npy").read_bytes()))
                self.places[found[:, 0]] = np.insert(found[:, 1:], 0, shard, axis=1)
        except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise UserError(
                f"the views of the {split} shards in {folder} cannot be read ({error}): remove {split}.json there and "
                "run scripts/read_bbox.py --shards again"
            ) from error

    def another(self, i: int, j: int, rng: np.random.Generator) -> View | None:
        """Another view of the object in the i-th picture's j-th box; None: there is none. Raises UserError: the drawn
        picture is not in the shards, or they cannot be read."""
        drawn = draw_view(self.arrays, i, j, rng)
        if drawn is None:
            return None
        number, box = drawn
        path, (shard, *parts) = path_of(self.arrays, number), self.places[number].tolist()
        if not parts[1]:
            raise UserError(f"reference {path} could not be opened when the shards were packed: correct it, pack again")
        try:
            archive = self.folder / f"{self.split}-{shard:05}.tar"
            data, mask = (read_part(archive, start, size) if size else None for start, size in (parts[:2], parts[2:]))
        except OSError as error:
            raise UserError(
                f"reference {path} cannot be read from its shard ({error}): pack the shards again"
            ) from error
        return View(PictureFile(path, data, mask), box)
