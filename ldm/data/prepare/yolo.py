"""YOLO's labels -> Boxes: a txt of the same name per picture, a line per object, all numbers fractions (0 to 1).

    class x y width height                          a box by its centre; a fifth number is a detector's confidence
    class x y x y x y ...                           a polygon
    class x y width height, x y ... or x y v ...    a pose: a box and keypoints; v: 0 unlabelled, 1 hidden, 2 visible

Where all lines may be polygons or poses, they are refused unless the format names their kind: the boxes would be wrong,
and nothing would show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ldm.data.prepare.annotations import OVERSHOOT, Boxes, Problems
from ldm.data.prepare.pairs import NO_BOX, pair_by_name
from ldm.tables import read_text

POLYGONS, POSE = "polygons", "pose"
Edges = tuple[float, float, float, float]  # x0, y0, x1, y1


def read_yolo(images: Path, annotations: Path, kind: str | None = None) -> Boxes:
    """For a polygon, its bounding box is used; for a pose, its box. classes.txt, if present, names the classes.

    kind: of lines of six and more numbers: POLYGONS, POSE or, where the numbers can tell, None."""
    names = annotations / "classes.txt"
    classes = read_text(names, "replace").splitlines() if names.is_file() else []
    problems, found = Problems(), []
    for picture, file in pair_by_name(images, annotations, [".txt"], problems):
        lines = [line for line in read_text(file, "replace").splitlines() if line.strip()]
        problems.add(NO_BOX, [] if lines else [str(file)])
        for line in lines:
            try:
                label, *words = line.split()
                found.append((picture, f"{file}: {line:.60}", _whole(label), np.array(words, dtype=np.float64)))
            except ValueError:
                problems.add("lines that cannot be read", [f"{file}: {line:.60}"])
    long = [numbers for _, _, _, numbers in found if len(numbers) > 5]
    kind, rows = kind or _kind_of(long), []
    for picture, line, label, numbers in found:
        if len(numbers) > 5 and kind is None and not _must_be_pose(numbers):
            problems.add("lines that may be polygons or poses: use --format yolo-polygons or yolo-pose", [line])
            continue
        try:
            box = _edges(numbers, kind)
        except ValueError:
            problems.add("lines that cannot be read", [line])
        else:
            rows.append((picture, *map(float, box), classes[label] if 0 <= label < len(classes) else str(label)))
    return Boxes.from_rows(rows, True, problems)


def read_yolo_polygons(images: Path, annotations: Path) -> Boxes:
    """read_yolo where lines of six and more numbers are polygons."""
    return read_yolo(images, annotations, POLYGONS)


def read_yolo_pose(images: Path, annotations: Path) -> Boxes:
    """read_yolo where lines of six and more numbers are poses."""
    return read_yolo(images, annotations, POSE)


def _whole(word: str) -> int:
    """A class: 3, or 3.0 as numpy and pandas write it. Raises ValueError."""
    if not float(word).is_integer():
        raise ValueError(word)
    return int(float(word))


def _edges(numbers: np.ndarray, kind: str | None) -> Edges:
    """A line's numbers after the class -> its box. Raises ValueError: too few or too many."""
    count = len(numbers)
    if count > 5 and kind != POLYGONS and (kind == POSE or _must_be_pose(numbers)):
        if _keypoints(numbers) is None:
            raise ValueError("neither pairs nor triples follow the box")
        return _box(numbers)
    if count > 5 and count % 2 == 0:
        points = numbers.reshape(-1, 2)
        return (*points.min(0), *points.max(0))
    if count not in (4, 5):
        raise ValueError("neither a box nor a polygon")
    return _box(numbers)


def _box(numbers: np.ndarray) -> Edges:
    x, y, width, height = numbers[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _keypoints(numbers: np.ndarray) -> np.ndarray | None:
    """The labelled keypoints (n,2) of a line if it is read as a pose; None: it cannot be one."""
    rest = numbers[4:]
    if len(rest) % 3 == 0 and np.isin(rest[2::3], (0, 1, 2)).all():
        points = rest.reshape(-1, 3)
        return points[points[:, 2] > 0, :2]
    if len(rest) % 2 == 0:
        points = rest.reshape(-1, 2)
        return points[points.any(axis=1)]
    return None


def _may_be_pose(numbers: np.ndarray) -> bool:
    """A box in the picture with all its keypoints."""
    x0, y0, x1, y1 = _box(numbers)
    corners, points = np.array([(x0, y0), (x1, y1)]), _keypoints(numbers)
    return (
        points is not None
        and x0 < x1
        and y0 < y1
        and bool(((corners > -OVERSHOOT) & (corners < 1 + OVERSHOOT)).all())
        and bool(((points > corners[0] - OVERSHOOT) & (points < corners[1] + OVERSHOOT)).all())
    )


def _must_be_pose(numbers: np.ndarray) -> bool:
    """Triples x y v after the box, where a polygon cannot have this count or a v of 2."""
    rest = numbers[4:]
    triples = len(rest) % 3 == 0 and bool(np.isin(rest[2::3], (0, 1, 2)).all())
    return triples and (len(rest) % 2 == 1 or bool((rest[2::3] == 2).any()))


def _must_be_polygon(numbers: np.ndarray) -> bool:
    """What cannot be a pose, and corners that only a polygon has: a parallelogram's, or the first again as the last."""
    if len(numbers) % 2:
        return False
    points = numbers.reshape(-1, 2)
    parallelogram = len(points) == 4 and np.allclose(points[0] + points[2], points[1] + points[3], atol=1e-4)
    return not _may_be_pose(numbers) or parallelogram or bool((points[0] == points[-1]).all())


def _kind_of(lines: list[np.ndarray]) -> str | None:
    """The kind of a data set's lines of six and more numbers; None: it cannot be told. Poses all have the same number
    of keypoints, and a few of them lie outside their box."""
    equal = len({len(numbers) for numbers in lines}) == 1
    if any(map(_must_be_pose, lines)):
        return POSE if equal else None
    return None if equal and np.mean([*map(_must_be_polygon, lines)]) <= 0.5 else POLYGONS
