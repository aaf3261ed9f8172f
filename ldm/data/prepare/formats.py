"""Annotation files of pictures of one's own -> Boxes: READERS[format](images, annotations).

images: the folder of the pictures. annotations: a file (coco, csv) or a folder (yolo, voc, masks). OpenImages has its
own layout, see open_images.py.
"""

from __future__ import annotations

import csv
import json
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from ldm.data.prepare.annotations import (
    EDGES,
    REFERENCE_EDGES,
    Boxes,
    Problems,
    chunked_map,
    in_chunks,
    pair_of,
    reason_of,
)
from ldm.data.prepare.pairs import NO_BOX, add_unannotated, pair_by_name
from ldm.data.prepare.yolo import read_yolo, read_yolo_polygons, read_yolo_pose
from ldm.images import open_picture, picture_endings, upright_mask, upright_size
from ldm.tables import read_rows
from ldm.util import UserError

CSV_NAMES = {  # column -> accepted names; without a header row the columns are in this order
    "path": ("path", "filename", "file_name", "file", "image"),
    "x0": ("x0", "xmin", "x_min", "left"),
    "y0": ("y0", "ymin", "y_min", "top"),
    "x1": ("x1", "xmax", "x_max", "right"),
    "y1": ("y1", "ymax", "y_max", "bottom"),
    "label": ("label", "class", "name", "category"),
}
PAIR_NAMES = {  # the same, for columns that only a header row can name
    "object": ("object", "object_id", "track_id"),
    "reference": ("reference",),
    **{f"reference_{edge}": tuple(f"reference_{name}" for name in CSV_NAMES[edge]) for edge in EDGES},
}
TRACKS = ("track_id", "instance_id")  # in COCO's annotations: an object in all frames of a video

NO_CROWD = (None, False, 0, "", "0", "0.0", "false", "False")  # of `iscrowd`


def read_coco(images: Path, annotations: Path) -> Boxes:
    """COCO's instances JSON: `bbox` is x, y, width, height in pixels. Numbers and ids may be text. Skips groups
    (iscrowd). Annotations may have `object`, or a track's id, or `reference` and `reference_box`.

    Raises UserError: not such a file."""
    problems, rows, seen = Problems(), [], set()
    try:
        content = json.loads(annotations.read_bytes())
        named = [(picture["id"], _place(images, picture["file_name"])) for picture in content["images"]]
        pictures = _Ids(named)
        annotated = {
            path: (_whole(picture["width"]), _whole(picture["height"]))
            for (_, path), picture in zip(named, content["images"], strict=True)
            if picture.get("width") and picture.get("height")
        }
        videos = {path: picture.get("video_id") for (_, path), picture in zip(named, content["images"], strict=True)}
        labels = _Ids((category["id"], category["name"]) for category in content.get("categories", ()))
        problems.add("pictures whose id another has, too", pictures.repeated)
        for annotation in content["annotations"]:
            path = pictures.find(annotation["image_id"])
            seen.add(path)
            if path is None:
                problems.add("boxes of an unknown image_id", [f"annotation {annotation.get('id')}"])
            elif annotation.get("iscrowd") not in NO_CROWD:
                problems.add("boxes around a crowd", [path])
            elif len(annotation.get("bbox") or ()) != 4:
                problems.add("annotations without a box", [path])
            else:
                x, y, width, height = map(float, annotation["bbox"])
                label = labels.find(annotation.get("category_id"))
                pair = _coco_pair(annotation, images, videos[path])
                seen.add(pair[1])
                rows.append((path, x, y, x + width, y + height, "" if label is None else str(label), *pair))
    except OSError as error:
        raise UserError(f"annotations {annotations} cannot be read ({error.strerror}): name a JSON file") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"annotations {annotations} are not COCO's instances ({reason_of(error)}): name a JSON file of instances"
        ) from error
    add_unannotated(images, annotations, seen - {None}, problems)
    return Boxes.from_rows(rows, False, problems, annotated)


def _coco_pair(annotation: dict, images: Path, video: Any) -> tuple:
    """The values of PAIRS. Tracks of different videos are different objects, whatever their ids."""
    thing = annotation.get("object")
    track = next((annotation[key] for key in TRACKS if annotation.get(key) is not None), None)
    if thing in (None, "") and track is not None:
        thing = track if video is None else f"{video}/{_whole(track)}"
    reference, box = annotation.get("reference") or "", annotation.get("reference_box")
    if not box:
        edges = [None] * 4
    elif len(box) != 4:
        edges = [math.nan] * 4
    else:
        x, y, width, height = map(float, box)
        edges = [x, y, x + width, y + height]
    return pair_of("" if thing is None else str(_whole(thing)), reference and _place(images, reference), edges)


class _Ids:
    """Values by id. An id also finds what has it in another type: 7, 7.0, "7" and "0007" are the same id, unless the
    file uses them for different things. repeated: values that are not found, since a later one has the same id."""

    def __init__(self, pairs: Iterable[tuple[Hashable, Any]]):
        self.exact: dict[Hashable, Any] = {}
        self.repeated = []
        for key, value in pairs:
            if self.exact.get(key, value) != value:
                self.repeated.append(self.exact[key])
            self.exact[key] = value
        same: dict[str, list[Any]] = {}
        for key, value in self.exact.items():
            same.setdefault(self._plain(key), []).append(value)
        self.loose = {key: values[0] for key, values in same.items() if len(values) == 1}

    @staticmethod
    def _plain(key: Hashable) -> str:
        text = str(key).strip()
        return text.removesuffix(".0").lstrip("0") or "0"

    def find(self, key: Hashable) -> Any:
        """The value; None: there is none."""
        return self.exact[key] if key in self.exact else self.loose.get(self._plain(key))


def _whole(value: Any) -> Any:
    """A side in pixels, 200, 200.0, "200" or "200.0", as a whole number; anything else as it is."""
    try:
        return int(float(value)) if float(value).is_integer() else value
    except (TypeError, ValueError, OverflowError):
        return value


def _place(images: Path, name: str) -> str:
    """A picture's path from its name in an annotation file; names from Windows have backslashes, which are characters
    like any other elsewhere."""
    path = os.path.join(images, name)
    if not {"\\", " "} & set(name) or os.path.exists(path):
        return path
    for other in (name.strip(), name.strip().replace("\\", "/")):
        if os.path.exists(os.path.join(images, other)):
            return os.path.join(images, other)
    return path


def read_voc(images: Path, annotations: Path) -> Boxes:
    """Pascal VOC: an XML file of the same name per picture; xmin, ymin, xmax, ymax in pixels, used unchanged. For
    videos, whose frames are in a folder each, `trackid` tells which boxes show the same object."""
    problems, rows = Problems(), []
    for picture, file in pair_by_name(images, annotations, [".xml"], problems):
        try:
            things = list(ET.parse(file).getroot().iter("object"))
        except (ET.ParseError, ValueError, LookupError, OSError) as error:
            problems.add("files that cannot be read", [f"{file}: {reason_of(error)}"])
            continue
        problems.add(NO_BOX, [] if things else [str(file)])
        for thing in things:
            try:
                box = [float(thing.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            except ValueError:
                problems.add("objects without a box", [f"{file}: {thing.findtext('name', '').strip()}"])
            else:
                track = thing.findtext("trackid", "").strip()
                pair = pair_of(track and f"{os.path.dirname(picture)}/{track}", "", [None] * 4)
                rows.append((picture, *box, thing.findtext("name", "").strip(), *pair))
    return Boxes.from_rows(rows, False, problems)


def read_csv(images: Path, annotations: Path) -> Boxes:
    """Rows `path,x0,y0,x1,y1` in pixels, optionally with a label; with a header row, columns may be in any order, and
    there may be those of PAIR_NAMES.

    Raises UserError: not such a file."""
    problems, rows = Problems(), []
    try:
        lines = read_rows(annotations, "replace")
    except (OSError, csv.Error) as error:
        raise UserError(f"annotations {annotations} cannot be read ({reason_of(error)}): name a CSV file") from error
    columns = dict(zip(CSV_NAMES, range(6), strict=True))
    if lines and len(lines[0][1]) > 1 and not any(map(_is_number, lines[0][1])):
        columns = _csv_columns(lines.pop(0)[1], annotations)
    named = set()
    for number, line in lines:
        path = _place(images, "".join(line[columns["path"] :][:1]))
        named.add(path)
        try:
            box = [_number(line[columns[edge]]) for edge in EDGES]
            label = line[columns["label"]] if columns.get("label", len(line)) < len(line) else ""
            pair = _csv_pair(line, columns, images)
            named.add(pair[1])
            rows.append((path, *box, label, *pair))
        except (ValueError, IndexError):
            problems.add("lines that cannot be read", [f"line {number}: {','.join(line):.60}"])
    add_unannotated(images, annotations, named, problems)
    return Boxes.from_rows(rows, False, problems)


def _csv_pair(line: list[str], columns: dict[str, int], images: Path) -> tuple:
    """The values of PAIRS. Where an edge is text, it is NaN, which is reported as a bad box of the reference."""
    cells = {name: "".join(line[columns[name] :][:1]) if name in columns else "" for name in PAIR_NAMES}
    edges = [None if not cells[name].strip() else _number_or_nan(cells[name]) for name in REFERENCE_EDGES]
    reference = cells["reference"] if cells["reference"].strip() else ""
    return pair_of(cells["object"].strip(), reference and _place(images, reference), edges)


def _number_or_nan(cell: str) -> float:
    try:
        return _number(cell)
    except ValueError:
        return math.nan


def _number(cell: str) -> float:
    """10.5, or 10,5 as spreadsheets of some countries write it. Raises ValueError."""
    return float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)


def _csv_columns(names: list[str], annotations: Path) -> dict[str, int]:
    """Position of each column of CSV_NAMES and PAIR_NAMES in a header row. Raises UserError: the path or an edge is
    missing."""
    positions = {name.strip().lower(): i for i, name in enumerate(names)}
    names_of = (CSV_NAMES | PAIR_NAMES).items()
    columns = {key: positions[name] for key, known in names_of for name in known if name in positions}
    if missing := [key for key in ("path", *EDGES) if key not in columns]:
        raise UserError(
            f"annotations {annotations}: its first row, {','.join(names):.80}, names no {missing[0]}: name the "
            "columns path,x0,y0,x1,y1"
        )
    return columns


def _is_number(cell: str) -> bool:
    return math.isfinite(_number_or_nan(cell))


def read_masks(images: Path, annotations: Path) -> Boxes:
    """A mask (255 = object) of the same name per picture, whose bounding box is used."""
    problems, rows = Problems(), []
    pairs = list(pair_by_name(images, annotations, picture_endings(), problems))
    boxes = chunked_map(_mask_boxes, in_chunks(pairs), len(pairs), "masks")
    for (picture, _), box in zip(pairs, boxes, strict=True):
        if isinstance(box, str):
            problems.add("masks that cannot be used", [box])
        else:
            rows.append((picture, *box, ""))
    return Boxes.from_rows(rows, False, problems)


def _mask_boxes(pairs: list[tuple[str, Path]]) -> list[tuple[float, float, float, float] | str]:
    """The bounding box of each mask in pixels of its picture, or the message that says why it cannot be used."""
    boxes = []
    for path, file in pairs:
        try:
            picture = open_picture(path, "image")
            mask = upright_mask(open_picture(file, "mask"), picture)
        except UserError as error:
            boxes.append(str(error))
            continue
        (width, height), sides = upright_size(picture), 2 * mask.size
        edges = mask.point(lambda grey: 255 * (grey >= 128)).getbbox()
        boxes.append(
            tuple(edge * full / side for edge, full, side in zip(edges, 2 * (width, height), sides, strict=True))
        )
    return boxes


READERS: dict[str, Callable[[Path, Path], Boxes]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "yolo-polygons": read_yolo_polygons,
    "yolo-pose": read_yolo_pose,
    "voc": read_voc,
    "csv": read_csv,
    "masks": read_masks,
}
