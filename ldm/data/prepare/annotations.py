"""Boxes, as annotation files have them -> the index that training reads (ldm/data/index.py).

    formats.py       annotation files -> Boxes: a row per box, and the problems met
    prepare(...)     + the pictures' sizes from their headers -> checked, filtered, one row per picture
    hold_out(...)    -> train and validation
    write_index(...) -> bbox/<split>.parquet;  write_txt(...) -> the published bbox/<folder>/<id>.txt

The columnar work is polars'; of pictures only headers are read. Nothing that is wrong is passed over: it is counted,
by kind, in a Problems, with the names.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from ldm.data.index import index_path, split_folders
from ldm.files import staging
from ldm.images import size_in_header
from ldm.util import UserError, cores

MIN_AREA, MAX_AREA = 0.02, 0.8  # of the picture's area: which boxes the published recipe keeps
CHUNK = 500  # pictures that one process takes at a time
OVERSHOOT = 0.005  # of the picture's side: what rounding may put beyond its edge
NO_TEXT = "pictures whose name is not UTF-8"
EDGES = ("x0", "y0", "x1", "y1")


class Problems:
    """What was left out or mended. names: kind of problem -> the names of what has it; filtered: boxes that are as they
    should be, but smaller or larger than asked for."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.filtered = 0

    def add(self, kind: str, names: Iterable[str]) -> None:
        if names := list(names):
            self.names.setdefault(kind, []).extend(map(_printable, names))

    def update(self, other: Problems) -> None:
        for kind, names in other.names.items():
            self.add(kind, names)
        self.filtered += other.filtered


def _printable(name: str) -> str:
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def is_text(name: str) -> bool:
    """File systems allow names that are no Unicode; an index does not."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


@dataclass
class Boxes:
    """What annotation files hold.

    paths: of the pictures. table: picture (its place in paths), x0, y0, x1, y1, label; a row per box. fractions: are
    the edges in 0..1 of the picture, or in pixels? annotated: (width, height) by path, where the files say it."""

    paths: pl.Series
    table: pl.DataFrame
    fractions: bool
    problems: Problems
    annotated: dict[str, tuple[int, int]] | None = None

    @classmethod
    def of_rows(
        cls, rows: Iterable[tuple], fractions: bool, problems: Problems, annotated: dict | None = None
    ) -> Boxes:
        """rows: (path, x0, y0, x1, y1, label)."""
        rows = list(rows)
        problems.add(NO_TEXT, (row[0] for row in rows if not is_text(row[0])))
        rows = [(*row[:5], _printable(row[5])) for row in rows if is_text(row[0])]
        schema = {"path": pl.String, **dict.fromkeys(EDGES, pl.Float64), "label": pl.String}
        table = pl.DataFrame(rows, schema=schema, orient="row")
        paths = table["path"].unique(maintain_order=True)
        places = pl.DataFrame({"path": paths}).with_row_index("picture")
        table = table.join(places, on="path", maintain_order="left").drop("path")
        return cls(paths, table, fractions, problems, annotated)


def prepare(boxes: Boxes, root: Path, min_area: float = MIN_AREA, max_area: float = MAX_AREA) -> pl.DataFrame:
    """Boxes -> one row per picture: path, width, height, boxes, label (see ldm/data/index.py).

    Kept are the boxes of min_area to max_area of the picture's area, ends included. Boxes are cut off at the picture's
    edge. root: what relative paths are relative to. What is left out is added to boxes.problems."""
    table = boxes.table
    if boxes.fractions:  # most boxes go before their picture is looked at
        table = _checked(boxes, table, EDGES, min_area, max_area)
    sizes = _sizes(boxes, table["picture"].unique().sort(), root)
    table = table.join(sizes, on="picture", maintain_order="left")
    sides = {edge: pl.col("width" if edge[0] == "x" else "height") for edge in EDGES}
    if boxes.fractions:
        table = table.with_columns(pl.col(edge) * sides[edge] for edge in EDGES)
    else:
        table = table.with_columns((pl.col(edge) / sides[edge]).alias(f"{edge}/") for edge in EDGES)
        table = _checked(boxes, table, [f"{edge}/" for edge in EDGES], min_area, max_area)
        table = table.with_columns(pl.col(edge).clip(0, sides[edge]) for edge in EDGES)
    table = table.select("picture", pl.concat_arr(*EDGES).alias("boxes"), "label")
    index = table.group_by("picture", maintain_order=True).agg("boxes", "label")
    return index.join(sizes, on="picture", maintain_order="left").select("path", "width", "height", "boxes", "label")


def _sizes(boxes: Boxes, pictures: pl.Series, root: Path) -> pl.DataFrame:
    """picture, path (as the index has it), width, height: from the headers of those pictures that can be used."""
    paths = boxes.paths.gather(pictures).to_list()
    files = [os.path.join(root, path) for path in paths]
    found, broken, changed = [], [], []
    sizes = parallel(_headers, chunks(files), len(files), "headers")
    for picture, path, size in zip(pictures.to_list(), paths, sizes, strict=True):
        if isinstance(size, str):
            broken.append(size)
        elif boxes.annotated and (said := boxes.annotated.get(path, size)) != size:
            changed.append(f"{path}: upright it is {size[0]} x {size[1]}, annotated are {said[0]} x {said[1]}")
        else:
            found.append((picture, _stored(path, root), *size))
    boxes.problems.add("pictures that cannot be read", broken)
    boxes.problems.add("pictures of another size than annotated", changed)
    schema = {"picture": pictures.dtype, "path": pl.String, "width": pl.Int32, "height": pl.Int32}
    return pl.DataFrame(found, schema=schema, orient="row")


def _stored(path: str, root: Path) -> str:
    """The path as the index has it: relative to root where it is inside."""
    inside = os.path.isabs(path) and Path(path).is_relative_to(os.path.abspath(root))
    return os.path.relpath(path, root) if inside else path


def _checked(boxes: Boxes, table: pl.DataFrame, edges: Iterable[str], least: float, most: float) -> pl.DataFrame:
    """The rows whose box, with edges in 0..1, is one, is in the picture and of the right size; cut off at the edge."""
    x0, y0, x1, y1 = (pl.col(edge) for edge in edges)
    beyond = (pl.min_horizontal(x0, y0) < -OVERSHOOT) | (pl.max_horizontal(x1, y1) > 1 + OVERSHOOT)
    for kind, bad, dropped in (
        ("boxes that are no numbers", ~pl.all_horizontal(pl.col(*edges).is_finite().fill_null(False)), True),
        ("boxes inverted or empty", (x1 <= x0) | (y1 <= y0), True),
        ("boxes outside their picture", (x0 >= 1) | (y0 >= 1) | (x1 <= 0) | (y1 <= 0), True),
        ("boxes cut off at the edge of their picture", beyond, False),
    ):
        found = table.filter(bad)["picture"]
        boxes.problems.add(kind, boxes.paths.gather(found))
        if dropped and len(found):
            table = table.filter(~bad)
    table = table.with_columns(pl.col(*edges).clip(0, 1))
    kept = table.filter(((x1 - x0) * (y1 - y0)).is_between(least, most))
    boxes.problems.filtered += table.height - kept.height
    return kept


def hold_out(index: pl.DataFrame, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(the rest, a share of the pictures), drawn by their paths, so that another run draws the same; at least one of
    two pictures is held out, unless share is 0."""
    count = min(max(1, round(share * index.height)), index.height - 1) if share else 0
    keys = [hashlib.sha256(path.encode()).digest() for path in index["path"]]
    held = np.zeros(index.height, dtype=bool)
    held[sorted(range(index.height), key=keys.__getitem__)[:count]] = True
    return index.filter(~held), index.filter(held)


def write_index(index: pl.DataFrame, root: Path, split: str) -> Path:
    """bbox/<split>.parquet under root, whole or not at all. An empty index is no file: one of an earlier run goes."""
    path = index_path(root, split)
    if index.height:
        with staging(path.parent) as temporary:
            try:
                index.write_parquet(temporary / path.name)
            except pl.exceptions.PolarsError as error:  # a full disk, for one
                raise OSError(str(error)) from error
    else:
        path.unlink(missing_ok=True)
    return path


def read_index(root: Path, split: str) -> pl.DataFrame:
    """The paths of bbox/<split>.parquet; none where there is no such file."""
    path = index_path(root, split)
    if not path.exists():
        return pl.DataFrame(schema={"path": pl.String})
    try:
        return pl.read_parquet(path, columns=["path"], glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"index {path}: cannot be read ({error}); remove it") from error


def write_problems(problems: Problems, root: Path) -> None:
    """bbox/problems.csv: a row `kind,name` per problem."""
    rows = [(kind, name) for kind, names in problems.names.items() for name in names]
    with staging(root / "bbox") as temporary:
        pl.DataFrame(rows, schema=["kind", "name"], orient="row").write_csv(temporary / "problems.csv")


def write_txt(index: pl.DataFrame, root: Path, split: str) -> None:
    """The published form: bbox/<folder>/<id>.txt for images/<folder>/<id>.jpg, a line `x0 y0 x1 y1` per box. They
    appear when all are written; those of an earlier run that no longer belong there go."""
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
        written = set(parallel(_write_txt, tasks, index.height, "txt files"))
    for folder in split_folders(bbox, split):
        for file in os.listdir(folder):
            if file.endswith(".txt") and f"{folder.name}/{file}" not in written and (folder / file).is_file():
                (folder / file).unlink()


def _write_txt(task: tuple[Path, list[str], list[int], np.ndarray]) -> list[str]:
    folder, names, counts, boxes = task
    rows = iter(boxes.tolist())
    for name, count in zip(names, counts, strict=True):
        with open(os.path.join(folder, name), "w") as file:
            file.writelines(f"{x0!r} {y0!r} {x1!r} {y1!r}\n" for x0, y0, x1, y1 in islice(rows, count))
    return names


# ------------------------------------------------------------------------------------------ on all cores


def _headers(paths: list[str]) -> list[tuple[int, int] | str]:
    """Of each picture its (width, height), or what is wrong with it."""
    sizes = []
    for path in paths:
        try:
            sizes.append(size_in_header(path))
        except UserError as error:
            sizes.append(str(error))
    return sizes


def chunks(items: list) -> Iterator[list]:
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))


def parallel(function: Callable[[Any], list], chunks: Iterable, total: int, what: str) -> Iterator:
    """The items of function(chunk) for every chunk, in order, from all cores, with a progress bar up to `total`."""
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, desc=what, unit="file", disable=total < CHUNK))
        results = map(function, chunks)
        if total > CHUNK:
            pool = ProcessPoolExecutor(min(cores(), 61), initializer=start_worker)
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(function, chunks)
        try:
            for items in results:
                yield from items
                bar.update(len(items))
        except BrokenProcessPool as error:
            raise UserError(f"{what}: a process was killed, perhaps for want of memory; run it again") from error


def start_worker() -> None:
    """Ctrl-C is for the parent; when that is gone, so is the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
