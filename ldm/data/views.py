"""Pairs: the reference of a sample may be another picture of the same object.

A view is a box in a picture. For an index whose table has a column `object` or `reference`, the arrays of BoxIndex are
joined by

    views       (k,2) int64: the numbers of a picture and of a box, those of one object after another, by picture
    view_range  (n,2) int64: where the views of each box's object begin and end in `views`; equal: it has none

Pictures and boxes that serve only as references follow those of the split in path_ends and boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ldm.data.masks import Box
from ldm.util import UserError, require

if TYPE_CHECKING:
    import polars as pl

    Arrays = dict[str, np.ndarray]

COLUMNS = ("object", "reference", "reference_box")  # of an index: lists, an entry per box


def draw_view(arrays: Mapping[str, np.ndarray], i: int, j: int, rng: np.random.Generator) -> tuple[int, Box] | None:
    """Another view of the object in the i-th picture's j-th box -> (number of its picture, its box), each of the views
    in other pictures equally likely. None: there is no other."""
    ends = arrays["ends"]
    start, stop = arrays["view_range"][(ends[i - 1] if i else 0) + j]
    views = arrays["views"][start:stop]
    first, last = np.searchsorted(views[:, 0], [i, i + 1])  # those of the picture itself
    count = len(views) - (last - first)
    if not count:
        return None
    drawn = int(rng.integers(count))
    picture, box = views[drawn if drawn < first else drawn + last - first]
    return int(picture), tuple(arrays["boxes"][box].tolist())


def path_of(arrays: Mapping[str, np.ndarray], i: int) -> str:
    """The i-th picture's path, as it is in the index."""
    ends = arrays["path_ends"]
    return bytes(arrays["letters"][ends[i - 1] if i else 0 : ends[i]]).decode()


def require_pairs(pair_share: float, arrays: Mapping[str, np.ndarray], name: str) -> None:
    """name: of the data. Raises UserError if references are to be drawn from other pictures and there are none."""
    if pair_share and "views" not in arrays:
        raise UserError(
            f"pair_share = {pair_share:g} but there are no pairs in {name}: give the annotations a column object or "
            "reference and run scripts/read_bbox.py again, or set pair_share to 0"
        )


def with_views(arrays: Arrays, frame: pl.DataFrame) -> Arrays:
    """The arrays of an index with those of views and the pictures that serve only as references, from its table with
    some of COLUMNS; unchanged if no box has another view. A box's own reference goes before its object.

    Raises polars' errors and ValueError: lists of different lengths, a reference without a box."""
    columns = [name for name in COLUMNS if name in frame.columns]
    rows = frame.select("boxes", *columns).with_row_index("picture").explode("boxes", *columns).with_row_index("box")
    ranges = np.zeros((rows.height, 2), np.int64)
    views = _views_of_objects(rows, ranges) if "object" in columns else np.zeros((0, 2), np.int64)
    added: Arrays = {}
    if "reference" in columns:
        own, added = _references(rows, frame.height, len(views), ranges)
        added["path_ends"] = added["path_ends"] + len(arrays["letters"])
        views = np.concatenate([views, own])
    if not len(views):
        return arrays
    grown = {name: np.concatenate([arrays[name], more]) for name, more in added.items()}
    return {**arrays, **grown, "views": views, "view_range": ranges}


def _views_of_objects(rows: pl.DataFrame, ranges: np.ndarray) -> np.ndarray:
    """The views of all objects that several pictures show. Fills in the ranges of their boxes."""
    pl = require("polars", "train")
    objects = rows.filter(pl.col("object") != "").group_by("object", maintain_order=True).agg("picture", "box")
    objects = objects.filter(pl.col("picture").list.n_unique() > 1)
    counts = objects["box"].list.len().to_numpy().astype(np.int64)
    views = objects.select("picture", "box").explode("picture", "box").to_numpy().astype(np.int64).reshape(-1, 2)
    stops = np.cumsum(counts)
    ranges[views[:, 1]] = np.repeat(np.stack([stops - counts, stops], axis=1), counts, axis=0)
    return views


def _references(rows: pl.DataFrame, pictures: int, start: int, ranges: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """pictures: in the index; start: the number of the first view -> the references' views and what they add to the
    arrays. Fills in the ranges of their boxes."""
    pl = require("polars", "train")
    edges = [pl.col("reference_box").list.get(k).cast(pl.Int32).alias(f"edge{k}") for k in range(4)]
    named = rows.filter(pl.col("reference") != "").select("box", "reference", *edges)
    if named.null_count().sum_horizontal().item():
        raise ValueError("the edge of a reference's box is missing")
    what = ["reference", *(f"edge{k}" for k in range(4))]
    different = named.select(what).unique(maintain_order=True).with_row_index("view")
    paths = different["reference"].unique(maintain_order=True)
    numbers = different.join(pl.DataFrame({"reference": paths}).with_row_index("picture"), "reference", "left")
    numbers = numbers.sort("view")["picture"].to_numpy().astype(np.int64)
    used = named.join(different, what, "left").select("box", "view").to_numpy().astype(np.int64).reshape(-1, 2)
    ranges[used[:, 0]] = start + used[:, 1:] + (0, 1)
    letters = paths.cast(pl.Binary)
    views = np.stack([pictures + numbers, rows.height + np.arange(len(numbers))], axis=1)
    return views, {
        "boxes": different.select(what[1:]).to_numpy().reshape(-1, 4),
        "letters": np.frombuffer(b"".join(letters), dtype=np.uint8),
        "path_ends": letters.bin.size().cast(pl.Int64).cum_sum().to_numpy(),
    }
