"""Boxes from annotation files -> the index that training reads (ldm/data/index.py).

    formats.py, open_images.py    annotation files -> Boxes: one row per box, and the problems found
    prepare(...)                  + the sizes in the pictures' headers -> checked and filtered, one row per picture
    splits.py                     -> train and validation, bbox/<split>.parquet, the published bbox/<folder>/<id>.txt

Tables are polars'. Of the pictures only the headers are read. No problem is ignored: each is counted by kind, with the
name of the file, in a Problems.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl
from tqdm import tqdm

from ldm.data.processes import worker_pool
from ldm.data.views import COLUMNS
from ldm.files import staging
from ldm.images import size_in_header
from ldm.util import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

MIN_AREA, MAX_AREA = 0.02, 0.8  # the published recipe keeps boxes with a share of the picture's area between the two
CHUNK = 500  # pictures that one process takes at a time
OVERSHOOT = 0.005  # share of the picture's side by which rounding may move an edge outside the picture
NO_TEXT = "pictures whose name is not UTF-8"
EDGES = ("x0", "y0", "x1", "y1")
REFERENCE_EDGES = tuple(f"reference_{edge}" for edge in EDGES)
PAIRS = {"object": pl.String, "reference": pl.String, **dict.fromkeys(REFERENCE_EDGES, pl.Float64)}
NO_PAIR = (None,) * len(PAIRS)


class Problems:
    """The boxes and pictures that were left out or corrected. names: kind of problem -> names of the files or boxes
    that have it; filtered: the number of boxes that are correct but smaller or larger than asked for; found: what each
    walk
    of a folder found, in a line."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.found: list[str] = []
        self.filtered = 0

    def add(self, kind: str, names: Iterable[str]) -> None:
        """Add names to a kind of problem; a kind without names is not listed."""
        if names := list(names):
            self.names.setdefault(kind, []).extend(map(_printable, names))

    def update(self, other: Problems) -> None:
        """Add all problems of another reader."""
        for kind, names in other.names.items():
            self.add(kind, names)
        self.filtered += other.filtered
        self.found += other.found


def pair_of(thing: str, reference: str, edges: Sequence[float | None]) -> tuple:
    """The values of PAIRS for a box. thing: the object; edges: None for the whole picture; empty texts: none."""
    return _printable(thing), reference if is_text(reference) else _printable(reference), *edges


def _printable(name: str) -> str:
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def is_text(name: str) -> bool:
    """False for file names that are not Unicode: file systems allow them, an index does not."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def reason_of(error: Exception) -> str:
    """The error's type and message in one short line."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:120]


@dataclass
class Boxes:
    """The content of annotation files.

    paths: of the pictures. table: one row per box: picture (its position in paths), x0, y0, x1, y1, label; and, where
    the files have it, some of PAIRS: object, the name that boxes of the same object share; reference, the path of
    another picture of the object, and its box there, all null for the whole picture. fractions: edges are fractions (0
    to 1) of the picture's sides instead of pixels. annotated: path -> (width, height), for pictures whose size the
    files give."""

    paths: pl.Series
    table: pl.DataFrame
    fractions: bool
    problems: Problems
    annotated: dict[str, tuple[int, int]] | None = None

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[tuple],
        fractions: bool,
        problems: Problems,
        annotated: dict[str, tuple[int, int]] | None = None,
    ) -> Boxes:
        """rows: (path, x0, y0, x1, y1, label), and optionally the values of PAIRS."""
        rows = list(rows)
        problems.add(NO_TEXT, (row[0] for row in rows if not is_text(row[0])))
        rows = [(*row[:5], _printable(row[5]), *(row[6:] or NO_PAIR)) for row in rows if is_text(row[0])]
        schema = {"path": pl.String, **dict.fromkeys(EDGES, pl.Float64), "label": pl.String, **PAIRS}
        table = with_used_pairs(pl.DataFrame(rows, schema=schema, orient="row"))
        paths = table["path"].unique(maintain_order=True)
        positions = pl.DataFrame({"path": paths}).with_row_index("picture")
        table = table.join(positions, on="path", maintain_order="left").drop("path")
        return cls(paths, table, fractions, problems, annotated)


def prepare(boxes: Boxes, root: Path, min_area: float = MIN_AREA, max_area: float = MAX_AREA) -> pl.DataFrame:
    """Boxes -> one row per picture: path, width, height, boxes, label (see ldm/data/index.py).

    Keeps the boxes that cover min_area to max_area of their picture, both included, and clips them to the picture. Adds
    what it leaves out to boxes.problems. root: the folder that relative paths start from."""
    table = boxes.table
    if boxes.fractions:  # filter first, since pictures without a remaining box need not be opened
        table = _check_and_filter(boxes, table, EDGES, min_area, max_area)
    sizes = _read_sizes(boxes, table["picture"].unique().sort(), root)
    table = table.join(sizes, on="picture", maintain_order="left")
    if boxes.fractions:
        table = table.with_columns(pl.col(edge) * side for edge, side in _sides(EDGES).items())
    else:
        table = _check_pixels(boxes, table, min_area, max_area)
    if "reference" in table.columns:
        table = _with_references(boxes, table, root)
    columns = ["label", *(name for name in COLUMNS if name in table.columns)]
    table = table.select("picture", pl.concat_arr(*EDGES).alias("boxes"), *columns)
    index = table.group_by("picture", maintain_order=True).agg("boxes", *columns)
    return index.join(sizes, on="picture", maintain_order="left").select("path", "width", "height", "boxes", *columns)


def with_used_pairs(table: pl.DataFrame) -> pl.DataFrame:
    """The table without `object` or `reference` and its box where no row has one."""
    unused = [name for name in ("object", "reference") if name in table.columns and not (table[name] > "").any()]
    return table.drop(*unused, *(REFERENCE_EDGES if "reference" in unused else ()), strict=False)


def _with_references(boxes: Boxes, table: pl.DataFrame, root: Path) -> pl.DataFrame:
    """The table with `reference` as in the index, and `reference_box` in pixels. A reference that cannot be used is
    added to boxes.problems, and its row has none."""
    table = table.with_row_index("row")
    named = table.filter(pl.col("reference") != "").select("row", "reference", *REFERENCE_EDGES)
    paths = named["reference"].unique(maintain_order=True)
    positions = pl.DataFrame({"reference": paths}).with_row_index("picture")
    edges = {f"reference_{edge}": edge for edge in EDGES}
    named = named.join(positions, on="reference", maintain_order="left").drop("reference").rename(edges)
    references = Boxes(paths, named, boxes.fractions, Problems())
    sizes = _read_sizes(references, named["picture"].unique().sort(), root)
    named = named.join(sizes, on="picture", maintain_order="left")
    whole = pl.all_horizontal(pl.col(*EDGES).is_null())
    sides = _sides(EDGES)
    for edge in EDGES:
        value = pl.col(edge) * sides[edge] if boxes.fractions else pl.col(edge)
        all_of_it = sides[edge] * float(edge[1])  # 0, or the side
        named = named.with_columns(pl.when(whole).then(all_of_it).otherwise(value).alias(f"{edge}/"))
    named = _check_pixels(references, named.drop(EDGES).rename({f"{edge}/": edge for edge in EDGES}), 0, 1)
    for kind, names in references.problems.names.items():
        boxes.problems.add(f"references: {kind}", names)
    named = named.select("row", pl.col("path").alias("reference"), pl.concat_list(*EDGES).alias("reference_box"))
    return table.drop("reference", *REFERENCE_EDGES).join(named, on="row", how="left", maintain_order="left")


def _sides(edges: Sequence[str]) -> dict[str, pl.Expr]:
    """The side of the picture along which each of these edges lies."""
    return {edge: pl.col("width" if edge[0] == "x" else "height") for edge in edges}


def _check_pixels(boxes: Boxes, table: pl.DataFrame, min_area: float, max_area: float) -> pl.DataFrame:
    """_check_and_filter for edges in pixels."""
    sides = _sides(EDGES)
    table = table.with_columns((pl.col(edge) / sides[edge]).alias(f"{edge}/") for edge in EDGES)
    table = _check_and_filter(boxes, table, [f"{edge}/" for edge in EDGES], min_area, max_area)
    return table.with_columns(pl.col(edge).clip(0, sides[edge]) for edge in EDGES)


def _read_sizes(boxes: Boxes, pictures: pl.Series, root: Path) -> pl.DataFrame:
    """picture, path (as in the index), width, height of the usable pictures, from their headers."""
    paths = boxes.paths.gather(pictures).to_list()
    files = [os.path.join(root, path) for path in paths]
    found, broken, changed = [], [], []
    sizes = chunked_map(_sizes_or_errors, in_chunks(files), len(files), "headers")
    for picture, path, size in zip(pictures.to_list(), paths, sizes, strict=True):
        if isinstance(size, str):
            broken.append(size)
        elif boxes.annotated and (annotated := boxes.annotated.get(path, size)) != size:
            changed.append(
                f"{path}: upright it is {size[0]} x {size[1]}, annotated are {annotated[0]} x {annotated[1]}"
            )
        else:
            found.append((picture, _path_in_index(path, root), *size))
    boxes.problems.add("pictures that cannot be read", broken)
    boxes.problems.add("pictures of another size than annotated", changed)
    schema = {"picture": pictures.dtype, "path": pl.String, "width": pl.Int32, "height": pl.Int32}
    return pl.DataFrame(found, schema=schema, orient="row")


def _path_in_index(path: str, root: Path) -> str:
    """Relative to root if it is inside."""
    inside = os.path.isabs(path) and Path(path).is_relative_to(os.path.abspath(root))
    return os.path.relpath(path, root) if inside else path


def _check_and_filter(
    boxes: Boxes, table: pl.DataFrame, edges: Sequence[str], min_area: float, max_area: float
) -> pl.DataFrame:
    """The rows with a valid box of the right size, clipped to the picture.

    edges: names of the four columns that hold the edges as fractions of the picture's sides."""
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
    kept = table.filter(((x1 - x0) * (y1 - y0)).is_between(min_area, max_area))
    boxes.problems.filtered += table.height - kept.height
    return kept


def write_problems(problems: Problems, root: Path) -> None:
    """Write bbox/problems.csv: one row `kind,name` per problem."""
    rows = [(kind, name) for kind, names in problems.names.items() for name in names]
    with staging(root / "bbox") as temporary:
        pl.DataFrame(rows, schema=["kind", "name"], orient="row").write_csv(temporary / "problems.csv")


def _sizes_or_errors(paths: list[str]) -> list[tuple[int, int] | str]:
    """The (width, height) of each picture, or the message that says why it cannot be read."""
    sizes = []
    for path in paths:
        try:
            sizes.append(size_in_header(path))
        except UserError as error:
            sizes.append(str(error))
    return sizes


def in_chunks(items: list[Item]) -> Iterator[list[Item]]:
    """The items in lists of at most CHUNK."""
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))


def chunked_map(
    function: Callable[[Item], list[Result]], chunks: Iterable[Item], total: int, kind: str
) -> Iterator[Result]:
    """The items of function(chunk) of every chunk, in order, with a progress bar; on all cores if there are many.

    total: number of items in all chunks; kind: of the items, in the plural, for the progress bar and messages."""
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, desc=kind, unit="file", disable=total < CHUNK))
        parallel_map = stack.enter_context(worker_pool(kind)) if total > CHUNK else map
        for items in parallel_map(function, chunks):
            yield from items
            bar.update(len(items))
