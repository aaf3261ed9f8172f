"""The index -> train and validation, and its files.

hold_out(...)       -> train and validation
write_index(...)    -> bbox/<split>.parquet
write_txt(...)      -> the published bbox/<folder>/<id>.txt
"""

from __future__ import annotations

import hashlib
import os
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from ldm.data.index import index_path, split_folders
from ldm.data.prepare.annotations import CHUNK, chunked_map
from ldm.files import staging
from ldm.util import UserError


def hold_out(index: pl.DataFrame, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(training, validation): validation gets this share (0 to 1) of the pictures, drawn by a hash of their paths, so
    that every run draws the same ones; at least one picture if there are two, unless share is 0. Pictures that
    have an object in common are held out together, as far as the share allows."""
    count = min(max(1, round(share * index.height)), index.height - 1) if share else 0
    groups = [index["path"][i] for i in _first_of_group(index)]
    keys = [
        [hashlib.sha256(path.encode()).digest() for path in pair] for pair in zip(groups, index["path"], strict=True)
    ]
    held = np.zeros(index.height, dtype=bool)
    held[sorted(range(index.height), key=keys.__getitem__)[:count]] = True
    return index.filter(~held), index.filter(held)


def _first_of_group(index: pl.DataFrame) -> list[int]:
    """For each picture the number of one that represents its group: those that have objects in common with it, with
    these, and so on."""
    above = list(range(index.height))

    def top(i: int) -> int:
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    first: dict[str, int] = {}
    for i, objects in enumerate(index["object"] if "object" in index.columns else ()):
        for name in filter(None, objects):
            above[top(i)] = top(first.setdefault(name, i))
    return [top(i) for i in range(index.height)]


def write_index(index: pl.DataFrame, root: Path, split: str) -> Path:
    """Write bbox/<split>.parquet under root, atomically. For an empty index, remove the file of an earlier run."""
    path = index_path(root, split)
    if index.height:
        with staging(path.parent) as temporary:
            try:
                index.write_parquet(temporary / path.name)
            except pl.exceptions.PolarsError as error:  # for example a full disk
                raise OSError(str(error)) from error
    else:
        path.unlink(missing_ok=True)
    return path


def read_index(root: Path, split: str) -> pl.DataFrame:
    """The paths in bbox/<split>.parquet; an empty table if there is no such file."""
    path = index_path(root, split)
    if not path.exists():
        return pl.DataFrame(schema={"path": pl.String})
    try:
        return pl.read_parquet(path, columns=["path"], glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"index {path} cannot be read ({error}): remove it") from error


def write_txt(index: pl.DataFrame, root: Path, split: str) -> None:
    """Write the published form: bbox/<folder>/<id>.txt for images/<folder>/<id>.jpg, a line `x0 y0 x1 y1` per box.

    The files appear when all are written; those that only an earlier run wrote are removed."""
    bbox = root / "bbox"
    names = index.select(pl.col("path").str.replace(r"^images/", "").str.replace(r"\.[^.]*$", ".txt").alias("name"))
    with staging(bbox) as temporary:
        for folder in names["name"].str.replace(r"/[^/]*$", "").unique():
            (temporary / folder).mkdir()
        table = names.hstack([index["boxes"]])
        tasks = (
            (temporary, rows["name"].to_list(), rows["boxes"].list.len().to_list(), rows["boxes"].explode().to_numpy())
            for rows in table.iter_slices(CHUNK)
        )
        written = set(chunked_map(_write_txt, tasks, index.height, "txt files"))
    for folder in split_folders(bbox, split):
        for file in os.listdir(folder):
            if file.endswith(".txt") and f"{folder.name}/{file}" not in written and (folder / file).is_file():
                (folder / file).unlink()


def _write_txt(task: tuple[Path, list[str], list[int], np.ndarray]) -> list[str]:
    """Write files with these names and counts of boxes to a folder. boxes (n,4): of all files. -> the names."""
    folder, names, counts, boxes = task
    rows = iter(boxes.tolist())
    for name, count in zip(names, counts, strict=True):
        with open(os.path.join(folder, name), "w") as file:
            file.writelines(f"{x0!r} {y0!r} {x1!r} {y1!r}\n" for x0, y0, x1, y1 in islice(rows, count))
    return names
