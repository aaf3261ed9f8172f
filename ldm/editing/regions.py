"""Regions: what to paint, as a mask, a box, a polygon, the photo's transparency or an object; inverted, grown, shrunk.

Coordinates are pixels of the photo as it is seen, turned as its EXIF says. Masks are PIL L, 255 = paint."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ldm.editing.background import distance_to_edge
from ldm.editing.options import Placement
from ldm.editing.pictures import Picture, as_picture
from ldm.images import upright_alpha, upright_mask, upright_rgb, upright_size
from ldm.pictures.metadata import without_mapping
from ldm.segmentation.objects import Point, Prompt, find_object
from ldm.util import UserError

KINDS = ("mask", "box", "polygon", "alpha")
OBJECT = ("snap", "click", "click_not")
OUTWARDS, NEAREST = (math.floor, math.floor, math.ceil, math.ceil), (round, round)  # from numbers to whole pixels


@dataclass(frozen=True)
class Region:
    """A part of a photo to paint: a mask, a box, a polygon, alpha, or an object; exactly one of these is given.

    mask: a picture, white (255) where to paint, of the photo's proportions; see ldm.editing.pictures.as_picture
    box: x0, y0, x1, y1; x1 and y1 are the first column and row outside
    polygon: three or more corners (x, y), in order
    alpha: where the photo is transparent, as after an eraser
    snap, click, click_not: an object, by a box like `box` that is loosely around all of it, by points (x, y) on it, or
        both; and points beside it. ldm.segmentation finds its outline

    Numbers may be of Python, numpy or torch. A box with fractions of pixels grows to whole ones, a point moves to the
    nearest. Raises UserError for anything else."""

    mask: Picture | None = None
    box: tuple[int, int, int, int] | None = None
    polygon: tuple[Point, ...] | None = None
    alpha: bool = False
    snap: tuple[int, int, int, int] | None = None
    click: tuple[Point, ...] | None = None
    click_not: tuple[Point, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("click", "click_not"):
            object.__setattr__(self, name, _points(getattr(self, name), name))
        by_object = self.snap is not None or self.click is not None
        given = [self.mask is not None, self.box is not None, self.polygon is not None, self.alpha is True, by_object]
        if self.click_not is not None and not by_object:
            raise UserError("click_not is beside an object that nothing marks: give click or snap as well")
        if sum(given) != 1 or not isinstance(self.alpha, bool):
            raise UserError("a region is a mask, a box, a polygon, alpha or an object: give exactly one of them")
        if self.mask is not None and not isinstance(
            self.mask, str | os.PathLike
        ):  # files are read when they are needed
            try:
                object.__setattr__(self, "mask", as_picture(self.mask, "mask"))
            except TypeError as error:
                raise UserError(str(error)) from error
        if self.box is not None:
            object.__setattr__(self, "box", _pixels(self.box, OUTWARDS, "box"))
        if self.snap is not None:
            object.__setattr__(self, "snap", _pixels(self.snap, OUTWARDS, "snap"))
        if self.polygon is not None:
            if isinstance(self.polygon, str) or not isinstance(self.polygon, Iterable):
                raise UserError(f"polygon {self.polygon!r:.60} is not a list of corners: give three or more (x, y)")
            object.__setattr__(self, "polygon", tuple(_pixels(each, NEAREST, "corner") for each in self.polygon))

    @classmethod
    def from_settings(cls, value: Any) -> Region:
        """A region from its settings, as read from a file: the inverse of `settings`. Raises UserError."""
        keys = value.keys() if isinstance(value, dict) else set()
        if not (keys and (keys <= set(OBJECT) or (len(keys) == 1 and keys <= set(KINDS)))):
            raise UserError(f"region {value!s:.60} is unknown: use a mask, a box, a polygon, alpha, click or snap")
        return cls(**value)

    @property
    def settings(self) -> dict[str, Any]:
        """The region as JSON, for the settings inside a picture: {"box": [x0, y0, x1, y1]}, {"mask": path}, ..."""
        if self.box is not None:
            return {"box": list(self.box)}
        if self.polygon is not None:
            return {"polygon": [list(point) for point in self.polygon]}
        if self.alpha:
            return {"alpha": True}
        if by_object := {name: value for name in OBJECT if (value := getattr(self, name)) is not None}:
            return {name: np.array(value).tolist() for name, value in by_object.items()}
        path = getattr(self.mask, "filename", "") if isinstance(self.mask, Image.Image) else self.mask
        return {"mask": os.fspath(path or "")}  # type: ignore[arg-type]  # a path by now

    def mask_in(self, image: Image.Image, placement: Placement = Placement()) -> Image.Image:
        """The region's mask in a photo (as opened): L, 255 = paint, upright and of the photo's size; first inverted,
        then grown, as the placement says.

        Raises UserError: a file that is not a mask of this photo, a region outside of it, nothing left to paint."""
        without_mapping(image).load()  # a PNG may say only after its pixels how it is turned
        size = upright_size(image)
        if self.box is not None:
            mask = box_mask(size, self.box)
        elif self.polygon is not None:
            mask = polygon_mask(size, self.polygon)
        elif self.alpha:
            mask = alpha_mask(image)
        elif self.snap is not None or self.click is not None:
            prompt = Prompt(self.snap, self.click or (), self.click_not or ())
            mask = find_object(upright_rgb(image), prompt, placement.segment)
        else:
            assert self.mask is not None  # one of the five is given
            mask = upright_mask(as_picture(self.mask, "mask"), image)
            if mask.size != size:
                mask = mask.resize(size, Image.Resampling.BILINEAR)
        if placement.invert:
            mask = ImageOps.invert(mask)
        if placement.grow:
            mask = grow(mask, placement.grow)
        if np.asarray(mask).max() < 128:
            cure = "change grow or invert" if placement.grow or placement.invert else "make its region wider"
            raise UserError(f"the mask has nothing left to paint at {size[0]} x {size[1]} pixels: {cure}")
        return mask


def _pixels(values: Any, rounding: Sequence[Callable[[float], int]], name: str) -> tuple[int, ...]:
    """Numbers of pixels, made whole by a rounding for each. Raises UserError: not as many numbers, or fractions of the
    photo's sides."""
    try:
        numbers = [value.item() if hasattr(value, "item") else value for value in values]  # of numpy and torch
        whole = tuple(by(number) for by, number in zip(rounding, numbers, strict=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} {values!s:.60} is not {len(rounding)} numbers: give pixels of the photo") from error
    if all(0 <= number <= 1 for number in numbers) and any(number % 1 for number in numbers):
        words, example = ",".join(map(str, numbers)), "x0,y0,x1,y1" if len(rounding) == 4 else "x,y"
        raise UserError(f"{words} are fractions: give {example} in pixels of the photo, not fractions of its sides")
    return whole


def _points(values: Any, name: str) -> tuple[Point, ...] | None:
    """One point, or several; none at all is None. Raises UserError."""
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"{name} {values!r:.60} is not a list of points: give one or more (x, y)")
    values = list(values)
    if len(values) == 2 and not any(isinstance(each, Iterable) for each in values):
        values = [values]
    return tuple(_pixels(each, NEAREST, name) for each in values) or None  # type: ignore[misc]


def _numbers(words: str, example: str) -> list[float]:
    try:
        numbers = [float(word) for word in words.split(",")]
        if len(numbers) != len(example.split(",")) or not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError as error:
        raise UserError(f"{words!r} is not of the form {example}: give pixels of the photo, without spaces") from error
    return numbers


def parse_box(words: str) -> Region:
    """ "x0,y0,x1,y1" -> a region. Raises UserError."""
    return Region(box=_numbers(words, "x0,y0,x1,y1"))  # type: ignore[arg-type]  # it makes them whole


def parse_point(words: str) -> Point:
    """ "x,y" -> (x, y). Raises UserError."""
    x, y = _pixels(_numbers(words, "x,y"), NEAREST, "point")
    return x, y


def box_mask(size: tuple[int, int], box: Sequence[int]) -> Image.Image:
    """size: (width, height); box: x0, y0, x1, y1, cut where it leaves the photo, with a note on stderr.

    Raises UserError if nothing is left."""
    x0, y0, x1, y1 = box
    inside = max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        numbers = ",".join(map(str, box))
        raise UserError(
            f"box {numbers} contains nothing of the photo, which is {size[0]} x {size[1]} pixels: give x0,y0,x1,y1 with"
            " x0 < x1 and y0 < y1"
        )
    if inside != tuple(box):
        _note_cut(f"box {','.join(map(str, box))}", size, f", and becomes {','.join(map(str, inside))}")
    mask = Image.new("L", size)
    mask.paste(255, inside)
    return mask


def _note_cut(region: str, size: tuple[int, int], result: str = "") -> None:
    print(f"{region} is cut at the border of the photo, which is {size[0]} x {size[1]} pixels{result}", file=sys.stderr)


def polygon_mask(size: tuple[int, int], points: Sequence[Sequence[int]]) -> Image.Image:
    """points: three or more corners (x, y), in order. Raises UserError: fewer, or nothing of the photo is inside."""
    if len(points) < 3:
        raise UserError(f"the polygon has {len(points)} corners: give 3 or more, x,y x,y x,y")
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points], fill=255)
    if mask.getbbox() is None:
        raise UserError(
            f"the polygon contains nothing of the photo, which is {size[0]} x {size[1]} pixels: correct its corners"
        )
    if not all(0 <= x <= size[0] and 0 <= y <= size[1] for x, y in points):
        _note_cut("the polygon", size)
    return mask


def alpha_mask(image: Image.Image) -> Image.Image:
    """The mask of what is transparent in the photo. Raises UserError if nothing is."""
    alpha = upright_alpha(image)
    if alpha is None or np.asarray(alpha).min() > 127:
        raise UserError("the photo has no transparent part: erase the region in it, or give a mask, a box or a polygon")
    return ImageOps.invert(alpha)


def grow(mask: Image.Image, pixels: float) -> Image.Image:
    """The mask and everything within this distance of it; with a negative distance, the mask without its edge."""
    white = np.asarray(mask) > 127
    near = distance_to_edge(~white) <= pixels if pixels > 0 else distance_to_edge(white) > -pixels
    return Image.fromarray(np.where(near, 255, 0).astype(np.uint8))
