"""The geometry of a training sample (Yang et al. 2022, section 3.3): pure functions of (box, size, rng).

A box is (x0, y0, x1, y1) in pixels, ends exclusive; a size is (width, height); rng is a numpy Generator. A model
trained on rectangles alone can only fill rectangles, so half of the regions are blobs.

    grow            box -> grown box, by up to 40% of the free space on each side
    blob            box, grown box -> polygon: four quadratic Bezier arcs from corner to corner of the box, each pulled
                    half-way to the grown box's side, with every vertex moved by up to 5 px
    window          grown box -> the square to cut out of the picture
    rectangle_mask, polygon_mask                      -> (H,W) uint8, 1 = keep, 0 = paint
    reference_region                                  -> the box and 10 px around it
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]

GROWTH = 0.4  # maximum share of the free space on a side
JITTER = 5  # maximum shift of a blob's vertex, px
SHRINK = 0.6  # maximum share of the smallest margin between the grown box and its square
REFERENCE_PADDING = 10  # px
ARC_STEPS = np.arange(1, 19) * 0.05  # the curve parameter t of an arc's vertices


def growth_limits(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The most pixels by which each side (left, top, right, bottom) may move outwards."""
    (x0, y0, x1, y1), (width, height) = box, size
    return tuple(int(GROWTH * free) for free in (x0, y0, width - x1, height - y1))


def grow(box: Box, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Each side moved outwards by a uniformly drawn number of pixels, up to its limit."""
    left, top, right, bottom = (int(rng.integers(0, limit, endpoint=True)) for limit in growth_limits(box, size))
    x0, y0, x1, y1 = box
    return x0 - left, y0 - top, x1 + right, y1 + bottom


def arcs(box: Box, grown: Box) -> np.ndarray:
    """(4,18,2) float64 (x,y): vertices of the top, right, bottom and left arc, clockwise around the box.

    B(t) = (1-t)^2 P0 + 2 t (1-t) P1 + t^2 P2, where P0 and P2 are corners of the box and P1 lies on the grown box,
    above the middle of the side. The operations are in the published order: `distinct` compares to the last bit."""
    (x0, y0, x1, y1), (left, top, right, bottom) = box, grown
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    nodes = np.array(
        [
            [(x0, y0), (middle_x, top), (x1, y0)],
            [(x1, y0), (right, middle_y), (x1, y1)],
            [(x1, y1), (middle_x, bottom), (x0, y1)],
            [(x0, y1), (left, middle_y), (x0, y0)],
        ],
        dtype=np.float64,
    )
    t = ARC_STEPS[None, :, None]
    p0, p1, p2 = (nodes[:, None, i] for i in range(3))
    return ((1 - t) * p0 + 2 * t * p1) * (1 - t) + t * t * p2


def distinct(arc: np.ndarray) -> np.ndarray:
    """(18,2) -> (n,2): drops each vertex that shares its x or y with a vertex kept before it on this arc."""
    kept_x, kept_y, kept = set(), set(), []
    for x, y in arc.tolist():
        if x not in kept_x and y not in kept_y:
            kept_x.add(x)
            kept_y.add(y)
            kept.append((x, y))
    return np.array(kept)


def blob(box: Box, grown: Box, rng: np.random.Generator) -> np.ndarray:
    """(n,2) float64 (x,y), n from 4 to 72: the polygon of an arbitrarily shaped region. It covers about 97% of the box
    and reaches up to 5 px beyond the grown box."""
    points = np.concatenate([distinct(arc) for arc in arcs(box, grown)])
    return points + rng.integers(-JITTER, JITTER, size=points.shape, endpoint=True)


def polygon_mask(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H,W) uint8, 1 = keep, 0 = inside the polygon."""
    mask = Image.new("L", size, 1)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points.tolist()], fill=0)
    return np.asarray(mask)


def rectangle_mask(box: Box, size: tuple[int, int]) -> np.ndarray:
    """(H,W) uint8, 1 = keep, 0 = inside the box."""
    mask = np.ones(size[::-1], dtype=np.uint8)
    x0, y0, x1, y1 = (max(0, edge) for edge in box)
    mask[y0:y1, x0:x1] = 0
    return mask


def window_positions(grown: Box, size: tuple[int, int]) -> tuple[int, int] | None:
    """First and last offset, along the picture's longer side, of a square that contains the grown box and whose side is
    the shorter one. None if there is no choice: then the whole picture is used, and squeezed to a square."""
    (x0, y0, x1, y1), (width, height) = grown, size
    if width == height:
        return None
    start, end, side, length = (x0, x1, height, width) if width > height else (y0, y1, width, height)
    first, last = max(0, end - side), min(start, length - side)
    return (first, last) if first < last else None


def shrink_limit(grown: Box, square: Box) -> int:
    """The most pixels by which each side of the square may move inwards."""
    margins = (grown[0] - square[0], grown[1] - square[1], square[2] - grown[2], square[3] - grown[3])
    return int(SHRINK * min(margins))


def window(grown: Box, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """The part of the picture that becomes the training sample: a square of random position and size around the grown
    box, or the whole picture where `window_positions` is None."""
    width, height = size
    positions = window_positions(grown, size)
    if positions is None:
        return 0, 0, width, height
    offset, side = int(rng.integers(*positions, endpoint=True)), min(size)
    x, y = (offset, 0) if width > height else (0, offset)
    square = (x, y, x + side, y + side)
    shrink = int(rng.integers(0, shrink_limit(grown, square), endpoint=True))
    return x + shrink, y + shrink, x + side - shrink, y + side - shrink


def reference_region(box: Box, size: tuple[int, int]) -> Box:
    """The box and 10 px around it, inside the picture."""
    (x0, y0, x1, y1), (width, height) = box, size
    pad = REFERENCE_PADDING
    return max(0, x0 - pad), max(0, y0 - pad), min(width, x1 + pad), min(height, y1 + pad)
