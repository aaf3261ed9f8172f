"""Annotation files of pictures of one's own -> Boxes: READERS[format](images, annotations).

images: the folder of the pictures. annotations: a file (coco, csv) or a folder (yolo, voc, masks). OpenImages has its
own layout, see open_images.py.
"""

from __future__ import annotations

import csv
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from ldm.data.prepare.annotations import EDGES, Boxes, Problems, chunked_map, in_chunks, reason_of
from ldm.images import open_picture, picture_endings, upright_mask, upright_size
from ldm.util import UserError

CSV_NAMES = {  # column -> accepted names; without a header row the columns are in this order
    "path": ("path", "filename", "file_name", "file", "image"),
    "x0": ("x0", "xmin", "x_min", "left"),
    "y0": ("y0", "ymin", "y_min", "top"),
    "x1": ("x1", "xmax", "x_max", "right"),
    "y1": ("y1", "ymax", "y_max", "bottom"),
    "label": ("label", "class", "name", "category"),
}


def read_coco(images: Path, annotations: Path) -> Boxes:
    """COCO's instances JSON: `bbox` is x, y, width, height in pixels. Skips groups (iscrowd).

    Raises UserError: not such a file."""
    problems, rows = Problems(), []
    try:
        content = json.loads(annotations.read_bytes())
        pictures = {picture["id"]: os.path.join(images, picture["file_name"]) for picture in content["images"]}
        annotated = {
            pictures[picture["id"]]: (picture["width"], picture["height"])
            for picture in content["images"]
            if picture.get("width") and picture.get("height")
        }
        labels = {category["id"]: category["name"] for category in content.get("categories", ())}
        for annotation in content["annotations"]:
            path = pictures.get(annotation["image_id"])
            if path is None:
                problems.add("boxes of an unknown image_id", [f"annotation {annotation.get('id')}"])
            elif annotation.get("iscrowd"):
                problems.add("boxes around a crowd", [path])
            elif len(annotation.get("bbox") or ()) != 4:
                problems.add("annotations without a box", [path])
            else:
                x, y, width, height = map(float, annotation["bbox"])
                rows.append((path, x, y, x + width, y + height, str(labels.get(annotation.get("category_id"), ""))))
    except OSError as error:
        raise UserError(f"annotations {annotations} cannot be read ({error.strerror}): name a JSON file") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"annotations {annotations} are not COCO's instances ({reason_of(error)}): name a JSON file of instances"
        ) from error
    _add_unannotated(images, set(pictures.values()), problems)
    return Boxes.from_rows(rows, False, problems, annotated)


def read_yolo(images: Path, annotations: Path) -> Boxes:
    """A txt of the same name per picture: lines `class x y width height`, the box's centre and size as fractions; for a
    polygon (`class x y x y ...`) its bounding box is used. classes.txt, if present, names the classes."""
    names = annotations / "classes.txt"
    classes = names.read_text(errors="replace").splitlines() if names.is_file() else []
    problems, rows = Problems(), []
    for picture, file in _pair_by_name(images, annotations, [".txt"], problems):
        for line in file.read_text("utf-8-sig", errors="replace").splitlines():
            if not line.strip():
                continue
            try:
                kind, *numbers = line.split()
                box, kind = _yolo_box(np.array(numbers, dtype=np.float64)), int(kind)
            except ValueError:
                problems.add("lines that cannot be read", [f"{file}: {line:.60}"])
                continue
            rows.append((picture, *map(float, box), classes[kind] if 0 <= kind < len(classes) else str(kind)))
    return Boxes.from_rows(rows, True, problems)


def _yolo_box(numbers: np.ndarray) -> tuple[float, ...]:
    """A line's numbers after the class -> x0, y0, x1, y1. Raises ValueError: too few or too many."""
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        points = numbers.reshape(-1, 2)
        return (*points.min(0), *points.max(0))
    x, y, width, height = numbers[: 4 if len(numbers) == 5 else None]  # a fifth is a detector's confidence
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def read_voc(images: Path, annotations: Path) -> Boxes:
    """Pascal VOC: an XML file of the same name per picture; xmin, ymin, xmax, ymax in pixels, used unchanged."""
    problems, rows = Problems(), []
    for picture, file in _pair_by_name(images, annotations, [".xml"], problems):
        try:
            things = list(ET.parse(file).getroot().iter("object"))
        except (ET.ParseError, ValueError, LookupError, OSError) as error:
            problems.add("files that cannot be read", [f"{file}: {reason_of(error)}"])
            continue
        for thing in things:
            try:
                box = [float(thing.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            except ValueError:
                problems.add("objects without a box", [str(file)])
            else:
                rows.append((picture, *box, thing.findtext("name", "")))
    return Boxes.from_rows(rows, False, problems)


def read_csv(images: Path, annotations: Path) -> Boxes:
    """Rows `path,x0,y0,x1,y1` in pixels, optionally with a label; with a header row, columns may be in any order.

    Raises UserError: not such a file."""
    problems, rows = Problems(), []
    try:
        with open(annotations, newline="", encoding="utf-8-sig", errors="replace") as file:
            first = file.readline()
            file.seek(0)
            lines = list(csv.reader(file, delimiter=";" if ";" in first and "," not in first else ","))
    except (OSError, csv.Error) as error:
        raise UserError(f"annotations {annotations} cannot be read ({reason_of(error)}): name a CSV file") from error
    columns = dict(zip(CSV_NAMES, range(6), strict=True))
    if lines and len(lines[0]) > 1 and not any(map(_is_number, lines[0])):
        columns = _csv_columns(lines.pop(0), annotations)
    named = set()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        named.update(os.path.join(images, cell) for cell in line[columns["path"] :][:1])
        try:
            path, *box = (line[columns[name]] for name in ("path", *EDGES))
            label = line[columns["label"]] if columns.get("label", len(line)) < len(line) else ""
            rows.append((os.path.join(images, path), *map(float, box), label))
        except (ValueError, IndexError):
            problems.add("lines that cannot be read", [f"row {number}: {','.join(line):.60}"])
    _add_unannotated(images, named, problems)
    return Boxes.from_rows(rows, False, problems)


def _csv_columns(names: list[str], annotations: Path) -> dict[str, int]:
    """Position of each column of CSV_NAMES in a header row. Raises UserError: one of path and edges is missing."""
    positions = {name.strip().lower(): i for i, name in enumerate(names)}
    columns = {key: positions[name] for key, known in CSV_NAMES.items() for name in known if name in positions}
    if missing := [key for key in ("path", *EDGES) if key not in columns]:
        raise UserError(
            f"annotations {annotations}: its first row, {','.join(names):.80}, names no {missing[0]}: name the "
            "columns path,x0,y0,x1,y1"
        )
    return columns


def _add_unannotated(images: Path, named: set[str], problems: Problems) -> None:
    """Add the pictures in the folder that the annotations do not name to `problems`. Raises UserError: no folder."""
    if not images.is_dir():
        raise UserError(f"images {images} is not a folder: name the one that contains them")
    found = (str(file) for file in sorted(images.rglob("*")) if file.suffix.lower() in picture_endings())
    problems.add("pictures without an annotation", (file for file in found if file not in named))


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def read_masks(images: Path, annotations: Path) -> Boxes:
    """A mask (255 = object) of the same name per picture, whose bounding box is used."""
    problems, rows = Problems(), []
    pairs = list(_pair_by_name(images, annotations, picture_endings(), problems))
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


def _by_name(folder: Path, kinds: Collection[str], problems: Problems) -> dict[Path, Path]:
    """Path in the folder without its extension -> file. Of several files with the same name the last is used, and the
    repetition added to `problems`."""
    found: dict[Path, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in kinds and file.is_file():
            key = file.relative_to(folder).with_suffix("")
            if key in found:
                problems.add("files of the same name as another", [str(file)])
            found[key] = file
    return found


def _pair_by_name(
    images: Path, annotations: Path, extensions: Iterable[str], problems: Problems
) -> Iterator[tuple[str, Path]]:
    """(picture, annotation file) of the same name in the same subfolder; one without the other is a problem.

    Raises UserError: a folder does not exist."""
    for folder, name in ((images, "images"), (annotations, "annotations")):
        if not folder.is_dir():
            raise UserError(f"{name} {folder} is not a folder: name the one that contains them")
    pictures, files = _by_name(images, picture_endings(), problems), _by_name(annotations, set(extensions), problems)
    files.pop(Path("classes"), None)
    problems.add("pictures without an annotation", (str(pictures[key]) for key in pictures if key not in files))
    problems.add("annotations without a picture", (str(files[key]) for key in files if key not in pictures))
    return ((str(pictures[key]), files[key]) for key in pictures if key in files)


READERS: dict[str, Callable[[Path, Path], Boxes]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "csv": read_csv,
    "masks": read_masks,
}
