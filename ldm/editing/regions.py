"""Masks without a drawing program: boxes, polygons, a photo's transparency; grown, shrunk, inverted.

A region is a small dictionary, as a command line or a JSON file has it: {"mask": path}, {"box": [x0, y0, x1, y1]},
{"polygon": [[x, y], ...]} or {"alpha": true}. Coordinates are pixels of the photo as it is seen, turned as its EXIF
says. A mask is a PIL L, 255 = paint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ldm.editing.background import depth
from ldm.images import open_picture, upright_alpha, upright_mask, upright_size
from ldm.util import UserError

Region = Mapping[str, Any]


def _numbers(words: str, count: int, example: str) -> list[int]:
    try:
        numbers = [float(word) for word in words.split(",")]
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError as error:
        raise UserError(f"{words!r}: is not of the form {example}; give pixels of the photo") from error
    return [round(number) for number in numbers]


def checked_region(value: Any) -> Region:
    """A region as JSON may have it. Raises UserError for what is none."""
    match value:
        case {"mask": str()} | {"alpha": True}:
            pass
        case {"box": [int(), int(), int(), int()]}:
            pass
        case {"polygon": [*points]} if all(isinstance(p, list) and [type(n) for n in p] == [int, int] for p in points):
            pass
        case _:
            raise UserError(f"region {value!s:.60}: is none; use a mask, a box, a polygon or alpha")
    return value


def parse_box(words: str) -> Region:
    """ "x0,y0,x1,y1" -> a region. Raises UserError."""
    return {"box": _numbers(words, 4, "x0,y0,x1,y1")}


def parse_point(words: str) -> list[int]:
    """ "x,y" -> [x, y]. Raises UserError."""
    return _numbers(words, 2, "x,y")


def box_mask(size: tuple[int, int], box: Sequence[int]) -> Image.Image:
    """size: (width, height); box: x0, y0, x1, y1, the latter two outside; what lies beyond the photo is cut off.

    Raises UserError where nothing is left."""
    x0, y0, x1, y1 = box
    inside = max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        numbers = ",".join(map(str, box))
        raise UserError(
            f"box {numbers}: has nothing of the photo, {size[0]} x {size[1]} pixels, in it; give x0,y0,x1,y1 with "
            "x0 < x1 and y0 < y1"
        )
    mask = Image.new("L", size)
    mask.paste(255, inside)
    return mask


def polygon_mask(size: tuple[int, int], points: Sequence[Sequence[int]]) -> Image.Image:
    """points: three or more corners x, y, in order. Raises UserError: fewer, or nothing of the photo is inside."""
    if len(points) < 3:
        raise UserError(f"polygon: has {len(points)} corners; give 3 or more, x,y x,y x,y")
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points], fill=255)
    if mask.getbbox() is None:
        raise UserError(f"polygon: has nothing of the photo, {size[0]} x {size[1]} pixels, in it; correct its corners")
    return mask


def alpha_mask(image: Image.Image) -> Image.Image:
    """Painted is where the photo is transparent, as after an eraser. Raises UserError: it is not."""
    alpha = upright_alpha(image)
    if alpha is None or alpha.getextrema()[0] > 127:
        raise UserError("the photo is nowhere transparent; erase the region in it, or give a mask, a box or a polygon")
    return ImageOps.invert(alpha)


def grown(mask: Image.Image, pixels: float) -> Image.Image:
    """The mask and all within so many pixels of it; below 0: without what is within so many pixels of its edge."""
    white = np.asarray(mask) > 127
    near = depth(~white) <= pixels if pixels > 0 else depth(white) > -pixels
    return Image.fromarray(np.where(near, 255, 0).astype(np.uint8))


def mask_of(region: Region, image: Image.Image, grow: float = 0, invert: bool = False) -> Image.Image:
    """A region of a photo (as opened) -> its mask, upright, first inverted, then grown.

    Raises UserError: a file that is no mask of this photo, a box or polygon outside it, nothing left to paint."""
    (kind, value), *_ = region.items()
    size = upright_size(image)
    if kind == "mask":
        mask = upright_mask(open_picture(value, "mask"), image)
        if mask.size != size:
            mask = mask.resize(size, Image.Resampling.BILINEAR)
    elif kind == "box":
        mask = box_mask(size, value)
    elif kind == "polygon":
        mask = polygon_mask(size, value)
    else:
        assert kind == "alpha", kind
        mask = alpha_mask(image)
    if invert:
        mask = ImageOps.invert(mask)
    if grow:
        mask = grown(mask, grow)
    if mask.getextrema()[1] < 128:
        raise UserError("the mask has nothing left to paint; change --grow or --invert")
    return mask
