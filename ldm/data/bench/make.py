"""Pictures of one's own -> a benchmark laid out like COCOEE.

    Instances            the labelled boxes of a prepared split; draft(i, seed) -> the boxes of a picture that can be
                         edited, each with its possible references
    make_bench(...)      Instances -> <outdir>/GT_3500, Mask_bbox_3500, Ref_3500, id_list.npy and cases.csv

The result depends on the arguments alone, not on the number of processes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.data.bench.cocoee import FILES, case_id, case_path
from ldm.data.bench.squares import PICTURES_PER_TASK, cut, cut_square, save_png
from ldm.data.index import index_path
from ldm.data.masks import Box, reference_region
from ldm.data.processes import worker_pool
from ldm.files import staging
from ldm.images import PictureFile
from ldm.util import UserError, require

BATCH = 1000  # cases drafted at a time
MAX_REFERENCES = 10  # drawn for a box; the first one that can be read is used
CASE_COLUMNS = ("id", "source", "box", "label", "reference", "reference_box")  # the columns of cases.csv

# reasons why a picture has no case
UNLABELLED = "pictures without a labelled box"
LONG = "pictures whose labelled boxes are longer than their shorter side"
ALONE = "pictures whose labels are on no other picture"
DAMAGED = "pictures that cannot be read, or none of the references drawn for them"


def square_around(box: tuple[float, ...], size: tuple[int, int]) -> Box | None:
    """The largest square of the picture that contains the box, centred on it as far as the picture allows; None where
    the box is too long. box: x0, y0, x1, y1 in pixels; size: of the picture, (width, height)."""
    side, corner = min(size), []
    for start, end, length in zip(box[:2], box[2:], size, strict=True):
        first, last = max(0, math.ceil(end) - side), min(length - side, math.floor(start))
        if first > last:
            return None
        corner.append(min(max(round((start + end - side) / 2), first), last))
    x, y = corner
    return x, y, x + side, y + side


def box_mask(box: tuple[float, ...], square: Box, size: int) -> np.ndarray:
    """(size,size) uint8, 255 = edit: the box in the square that is resized to size x size. Edges are rounded to whole
    pixels; at least one pixel is white."""
    scale, edges = size / (square[2] - square[0]), []
    for start, end, offset in zip(box[:2], box[2:], square[:2], strict=True):
        first = min(round((start - offset) * scale), size - 1)
        edges.append(slice(first, max(first + 1, round((end - offset) * scale))))
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[edges[1], edges[0]] = 255
    return mask


@dataclass(frozen=True)
class Instance:
    """An object on a picture. path: as in the index; size: of the picture, (width, height); box: x0, y0, x1, y1."""

    path: str
    size: tuple[int, int]
    box: tuple[float, ...]
    label: str

    def pixels(self, root: Path) -> np.ndarray:
        """(H,W,3) uint8, the whole picture. root: the folder that the path starts from. Raises UserError: it cannot be
        read, or its size is not the one in the index."""
        picture = PictureFile(root / self.path)
        if picture.size != self.size:
            raise UserError(f"image {picture.path} has another size than in the index: run scripts/read_bbox.py again")
        return picture.pixels()


@dataclass(frozen=True)
class Draft:
    """The boxes of a picture that can be edited, each with its references, in the order in which they are tried.
    number: of the draft, from 0."""

    number: int
    choices: list[tuple[Instance, list[Instance]]]


class Instances:
    """The labelled boxes of a split, clipped to their picture. len: pictures in the index.

    boxes (n,4) and labels (n,) are in the order of the pictures; ends: where each picture's boxes end; by_label: label
    -> positions of the boxes with it."""

    def __init__(self, dataset_dir: Path, split: str):
        """Raises UserError: no index, a damaged one, no labels in it."""
        pl = require("polars", "train")
        path = index_path(dataset_dir, split)
        if not path.exists():
            raise UserError(
                f"index {path} does not exist: prepare it with scripts/read_bbox.py, or name another --split"
            )
        try:
            frame = pl.read_parquet(path, columns=["path", "width", "height", "boxes", "label"], glob=False)
            frame = frame.unique("path", keep="first", maintain_order=True)
            table = frame.select(
                pl.int_range(pl.len()).alias("picture"),
                pl.col("boxes").cast(pl.List(pl.Array(pl.Float64, 4))),
                pl.col("label").cast(pl.List(pl.String)),
            )
            table = table.filter(pl.col("label").list.len() == pl.col("boxes").list.len()).explode("boxes", "label")
            table = table.filter(pl.col("label").fill_null("") != "", pl.col("boxes").is_not_null())
            self.sizes = frame.select(pl.col("width", "height").cast(pl.Int64)).to_numpy()
            edges = table["boxes"].to_numpy().reshape(-1, 4)
            if not np.isfinite(edges).all() or frame["path", "width", "height"].null_count().sum_horizontal().item():
                raise ValueError("a path, a size or the edge of a box is missing")
        except (pl.exceptions.PolarsError, OSError, ValueError, TypeError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"index {path} cannot be read ({reason}): make it again with scripts/read_bbox.py"
            ) from error
        if not table.height:
            raise UserError(f"index {path} has no labelled box: prepare it from annotations with labels")
        edges = edges.clip(0, np.tile(self.sizes, 2)[table["picture"].to_numpy()])
        inside = (edges[:, :2] < edges[:, 2:]).all(axis=1)
        self.paths, self.boxes, table = frame["path"], edges[inside], table.filter(inside)
        self.labels = table["label"]
        self.ends = np.searchsorted(table["picture"].to_numpy(), np.arange(len(self)), side="right")
        grouped = table.with_row_index("position").group_by("label").agg("position")
        self.by_label = {label: positions.to_numpy() for label, positions in zip(*grouped, strict=True)}

    def __len__(self) -> int:
        return len(self.paths)

    def instance(self, picture: int, position: int) -> Instance:
        """The box at this position, which is on this picture."""
        box, size = self.boxes[position].tolist(), self.sizes[picture].tolist()
        return Instance(self.paths[picture], tuple(size), tuple(box), self.labels[position])

    def draft(self, picture: int, seed: int) -> list[tuple[Instance, list[Instance]]] | str:
        """The boxes of a picture that fit a square of it, in random order, each with up to MAX_REFERENCES instances of
        the same label on other pictures, all equally likely. If it has no such box: one of the reasons above."""
        first, end = int(self.ends[picture - 1]) if picture else 0, int(self.ends[picture])
        if first == end:
            return UNLABELLED
        rng = np.random.default_rng((seed, picture))
        positions = (first + rng.permutation(end - first)).tolist()
        instances = [self.instance(picture, position) for position in positions]
        fitting = [instance for instance in instances if square_around(instance.box, instance.size)]
        if not fitting:
            return LONG
        choices = []
        for instance in fitting:
            same_label = self.by_label[instance.label]
            own = np.searchsorted(same_label, (first, end))  # the picture's own boxes follow each other
            others = len(same_label) - int(own[1] - own[0])
            if others:
                drawn = rng.choice(others, min(others, MAX_REFERENCES), replace=False)
                drawn[drawn >= own[0]] += own[1] - own[0]
                positions = same_label[drawn].tolist()
                pictures = np.searchsorted(self.ends, positions, side="right").tolist()
                choices.append((instance, list(map(self.instance, pictures, positions))))
        return choices or ALONE


@dataclass
class Summary:
    """The outcome of make_bench. cases: their number; left_out: reason -> number of pictures without a case for that
    reason; unreadable: messages about unreadable files, the keys of a dict, which keeps them in order and drops
    repetitions."""

    cases: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, None] = field(default_factory=dict)


def make_bench(instances: Instances, root: Path, outdir: Path, count: int, size: int, seed: int) -> Summary:
    """Write up to `count` cases, one per picture, size x size. If it fails, nothing is written.

    root: the folder that the index's paths start from. Raises UserError: outdir has cases already, no case can be made,
    the disk is full."""
    outdir = outdir.absolute()
    if any((outdir / name).exists() for name in (*FILES, "id_list.npy")):
        raise UserError(f"outdir {outdir} contains cases already: name another folder, or remove it")
    pl = require("polars", "train")
    summary, rows, new = Summary(), [], not outdir.exists()
    with (
        staging(outdir.parent if new else outdir) as temporary,
        worker_pool("pictures", PICTURES_PER_TASK) as parallel_map,
        tqdm(desc="cases", total=min(count, len(instances)), unit="case") as bar,
    ):
        bench = temporary / outdir.name if new else temporary  # a new folder appears complete
        for folder in FILES:
            (bench / folder).mkdir(parents=True)
        make_case = partial(_make_case, root=root, bench=bench, size=size)
        drafts = _drafts(instances, seed, summary.left_out)
        while batch := list(islice(drafts, min(count - summary.cases, BATCH))):
            for draft, (pair, problems) in zip(batch, parallel_map(make_case, batch), strict=True):
                summary.unreadable |= dict.fromkeys(problems)
                if pair is None:
                    summary.left_out[DAMAGED] += 1
                    continue
                drafted, final = case_id(draft.number), case_id(summary.cases)
                for folder in FILES:  # numbered without the gaps of failed drafts
                    os.replace(case_path(bench, folder, drafted), case_path(bench, folder, final))
                rows.append(_row(summary.cases, *pair))
                summary.cases += 1
                bar.update()
        if not summary.cases:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in summary.left_out.items())
            raise UserError(f"no case can be made from {root} ({reasons}): prepare more pictures or other boxes")
        np.save(bench / "id_list.npy", np.arange(summary.cases, dtype=np.int64))
        pl.DataFrame(rows, schema=CASE_COLUMNS, orient="row").write_csv(bench / "cases.csv")
    return summary


def _drafts(instances: Instances, seed: int, left_out: Counter[str]) -> Iterator[Draft]:
    """Drafts of the pictures, in random order; counts the pictures that cannot have a case in `left_out`."""
    number = 0
    for picture in np.random.default_rng(seed).permutation(len(instances)).tolist():
        choices = instances.draft(picture, seed)
        if isinstance(choices, str):
            left_out[choices] += 1
        else:
            yield Draft(number, choices)
            number += 1


def _make_case(draft: Draft, root: Path, bench: Path, size: int) -> tuple[tuple[Instance, Instance] | None, list[str]]:
    """Write the three files of the first choice whose pictures can be read, under the draft's number.

    -> the object and its reference, or None if no pair of pictures can be read; messages about unreadable files."""
    problems = []
    try:
        pixels = draft.choices[0][0].pixels(root)
    except UserError as error:
        return None, [str(error)]
    for instance, references in draft.choices:
        for reference in references:
            try:
                reference_pixels = reference.pixels(root)
            except UserError as error:
                problems.append(str(error))
                continue
            region = reference_region(tuple(map(int, reference.box)), reference.size)
            square = square_around(instance.box, instance.size)
            pictures = (
                cut_square(pixels, square, size),
                Image.fromarray(box_mask(instance.box, square, size)),
                cut(reference_pixels, region),
            )
            for folder, picture in zip(FILES, pictures, strict=True):
                save_png(picture, case_path(bench, folder, case_id(draft.number)))
            return (instance, reference), problems
    return None, problems


def _row(number: int, instance: Instance, reference: Instance) -> tuple[str, ...]:
    box, other = (" ".join(f"{edge:.10g}" for edge in each.box) for each in (instance, reference))
    return case_id(number), instance.path, box, instance.label, reference.path, other
