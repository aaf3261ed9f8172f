"""The pictures in shards, each found by its number: references come from any of them (see views.py).

    <dataset_dir>/shards/<split>-views.npz        the arrays of the index
    <dataset_dir>/shards/<split>-00000.npy, ...   (k,3) int64: a shard's pictures: number, first byte, bytes

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


def write_places(path: Path) -> None:
    """Write where a shard's pictures are, beside it."""
    with tarfile.open(path) as shard:
        pictures = [member for member in shard if not member.name.endswith(".json")]
    places = [(int(member.name.partition(".")[0]), member.offset_data, member.size) for member in pictures]
    np.save(path.with_suffix(".npy"), np.array(places, np.int64).reshape(-1, 3))


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
            self.places = np.zeros((len(self.arrays["path_ends"]), 3), np.int64)  # shard, first byte, bytes
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
        path, (shard, start, size) = path_of(self.arrays, number), self.places[number].tolist()
        if not size:
            raise UserError(f"reference {path} could not be opened when the shards were packed: correct it, pack again")
        try:
            data = read_part(self.folder / f"{self.split}-{shard:05}.tar", start, size)
        except OSError as error:
            raise UserError(
                f"reference {path} cannot be read from its shard ({error}): pack the shards again"
            ) from error
        return View(PictureFile(path, data), box)
