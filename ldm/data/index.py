"""The index of a split: its pictures and the boxes on each. scripts/read_bbox.py writes it; training reads it.

`<dataset_dir>/bbox/<split>.parquet` holds one row per picture:

    path            string, relative to dataset_dir, or absolute
    width, height   int32, of the picture, upright, in pixels
    boxes           list of 4 float64: x0, y0, x1, y1 in pixels, ends exclusive
    label           list of string, one per box
    object          (optional) list of string, one per box: boxes with the same one, not empty, show the same object
    reference       (optional) list of string, one per box: the path of a picture of its object; empty: none
    reference_box   (with reference) list of lists of 4 float64, one per box: the object in it, as in boxes; or null

If there is no such file, the published form is read: `bbox/<folder>/<id>.txt`, a line `x0 y0 x1 y1` per box, for
`images/<folder>/<id>.jpg`; the folders are train_0 ... train_f, validation, test.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.data import views
from ldm.data.masks import Box
from ldm.files import staging
from ldm.storage import Place, Url, local, place
from ldm.util import UserError, require

SPLITS = ("train", "validation", "test")
MAX_EDGE = 2**30  # pixels
# boxes (n,4) int32 of all pictures; ends: where each picture's boxes end; letters: the bytes of all paths, in UTF-8;
# path_ends: where each path ends. The arrays of ldm/data/views.py join them if boxes have other views.
ARRAYS = ("boxes", "ends", "letters", "path_ends")


class MissingSplit(UserError):
    """A split whose data was never prepared."""


def index_path(root: Place, split: str) -> Place:
    """The index of a split under the data set's folder."""
    return root / "bbox" / f"{split}.parquet"


class BoxIndex:
    """`index[i]` -> (path, boxes (n,4) int64) of the split's i-th picture, boxes truncated to whole pixels.

    A Parquet index is unpacked once into arrays in a hidden folder beside it, or beside the copy of one in storage.
    These are memory-mapped: all worker processes of all training runs on a machine share one copy, and opening it again
    takes no time."""

    def __init__(self, dataset_dir: str | Place, split: str):
        """Raises MissingSplit: neither index nor txt files; UserError: damaged ones, or no picture in them."""
        assert split in SPLITS, split
        self.root, self.split = place(dataset_dir), split
        self._load()
        if not len(self):
            raise UserError(f"the {split} split of {self.root} has no pictures: prepare it with scripts/read_bbox.py")

    def _load(self) -> None:
        parquet = index_path(self.root, self.split)
        if not parquet.exists():
            self.mapped, self.arrays = None, read_txt(self.root, self.split)
            return
        parquet = local(parquet)
        state = parquet.stat()
        self.mapped = parquet.parent / f".{self.split}-{state.st_mtime_ns:x}-{state.st_size:x}"
        if all((self.mapped / f"{name}.npy").exists() for name in ARRAYS):
            self._map()
            return
        self.arrays = _read_parquet(parquet)
        try:
            with staging(parquet.parent) as temporary:
                (temporary / self.mapped.name).mkdir()
                for name, array in self.arrays.items():
                    np.save(temporary / self.mapped.name / f"{name}.npy", array)
        except UserError:  # a read-only folder: each process keeps its own copy
            self.mapped = None
            return
        for old in parquet.parent.glob(f".{self.split}-*"):
            if old != self.mapped:
                shutil.rmtree(old, ignore_errors=True)
        self._map()

    def _map(self) -> None:
        self.arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(self.mapped.glob("*.npy"))}

    def __getstate__(self) -> dict:
        """Another process gets the path of the memory-mapped arrays instead of their content."""
        return {**self.__dict__, "arrays": None} if self.mapped else self.__dict__

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.mapped and self.mapped.exists():
            self._map()
        elif self.mapped:  # the index was replaced in the meantime
            self._load()

    def __len__(self) -> int:
        return len(self.arrays["ends"])

    def path(self, i: int) -> Place:
        """The file of the i-th picture."""
        return self.root / views.path_of(self.arrays, i)

    @property
    def paired(self) -> int:
        """How many boxes have a view of their object in another picture."""
        return int(np.diff(self.arrays["view_range"]).astype(bool).sum()) if "views" in self.arrays else 0

    def other_view(self, i: int, j: int, rng: np.random.Generator) -> tuple[Place, Box] | None:
        """Another view, drawn at random, of the object in the i-th picture's j-th box -> (picture, box); None: there is
        none."""
        drawn = views.draw_view(self.arrays, i, j, rng)
        return drawn and (self.path(drawn[0]), drawn[1])

    def __getitem__(self, i: int) -> tuple[Place, np.ndarray]:
        ends = self.arrays["ends"]
        return self.path(i), np.asarray(self.arrays["boxes"][ends[i - 1] if i else 0 : ends[i]], dtype=np.int64)


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    pl = require("polars", "train")  # imported here, since worker processes do not need it
    try:
        known = pl.scan_parquet(path, glob=False).collect_schema()
        columns = [name for name in views.COLUMNS if name in known]
        frame = pl.read_parquet(path, columns=["path", "boxes", *columns], glob=False)
        frame = frame.with_columns(pl.col("boxes").cast(pl.List(pl.Array(pl.Float64, 4))))
        frame = frame.filter(pl.col("boxes").list.len() > 0)
        boxes = frame["boxes"].explode().to_numpy()
        if frame["path"].null_count() or not np.isfinite(boxes).all() or np.abs(boxes).max(initial=0) > MAX_EDGE:
            raise ValueError("a path or the edge of a box is missing")
        letters = frame["path"].cast(pl.Binary)
        arrays = {
            "boxes": boxes.astype(np.int32).reshape(-1, 4),
            "ends": frame["boxes"].list.len().cast(pl.Int64).cum_sum().to_numpy(),
            "letters": np.frombuffer(b"".join(letters), dtype=np.uint8),
            "path_ends": letters.bin.size().cast(pl.Int64).cum_sum().to_numpy(),
        }
        return views.with_views(arrays, frame) if columns else arrays
    except (pl.exceptions.PolarsError, OSError, ValueError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"index {path} cannot be read ({reason}): make it again with scripts/read_bbox.py") from error


def split_folders(root: Path, split: str) -> list[Path]:
    """The folders of a split in `root` (images or bbox): the published train_0 ... train_f, or one of its name."""
    names = [f"train_{i:x}" for i in range(16)] if split == "train" else []
    return [folder for name in (*names, split) if (folder := root / name).is_dir()]


def read_txt(root: Place, split: str) -> dict[str, np.ndarray]:
    """The arrays of a BoxIndex, from the published txt files, which must be on this machine.

    Raises MissingSplit: there are no files; UserError: a damaged one."""
    folders = [] if isinstance(root, Url) else split_folders(root / "bbox", split)
    files = [file for folder in folders for file in sorted(folder.glob("*.txt"))]
    if not files:
        raise MissingSplit(
            f"{root} has no boxes for {split}: prepare them with scripts/read_bbox.py, or name another folder"
        )
    paths, boxes, ends = [], [], []
    for file in tqdm(files, desc=f"{split} boxes", unit="file", disable=len(files) < 10_000):
        try:
            found = [
                [int(float(edge)) for edge in line.split()] for line in file.read_text().splitlines() if line.strip()
            ]
            if any(len(box) != 4 for box in found):
                raise ValueError("a line without four numbers")
            found = np.array(found, dtype=np.int32)
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"{file} cannot be read ({error}): write each line as x0 y0 x1 y1") from error
        if len(found):
            boxes.append(found)
            ends.append(len(found))
            paths.append(f"images/{file.parent.name}/{file.stem}.jpg".encode())
    return {
        "boxes": np.concatenate(boxes) if boxes else np.zeros((0, 4), np.int32),
        "ends": np.cumsum(ends, dtype=np.int64),
        "letters": np.frombuffer(b"".join(paths), dtype=np.uint8),
        "path_ends": np.cumsum([len(path) for path in paths], dtype=np.int64),
    }
