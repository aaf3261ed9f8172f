"""The object at some clicks or in a loose box -> its mask; and pictures without their background."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm.images import name_of, upright_rgb
from ldm.segmentation.grabcut import grab_cut
from ldm.util import UserError

Point = tuple[int, int]
Box = tuple[int, int, int, int]
GRABCUT = "grabcut"
BORDER = 0.02  # of a reference's sides, where its background is assumed
MIN_SHARE = 0.01  # of a reference that its object covers


@dataclass(frozen=True)
class Prompt:
    """What is known of an object, in pixels of the upright picture. box: x0, y0, x1, y1 around all of it, loosely;
    clicks: on it; clicks_not: beside it. A box or a click is given."""

    box: Box | None = None
    clicks: tuple[Point, ...] = ()
    clicks_not: tuple[Point, ...] = ()


Segmenter = Callable[[np.ndarray, Prompt], np.ndarray]  # picture (H,W,3) uint8 RGB -> (H,W) bool, the object


@functools.lru_cache(maxsize=2)
def load_segmenter(name: str | None = None) -> Segmenter:
    """name: None or "grabcut"; "hub" for SAM 2, downloaded once; or the folder of a SAM 2. Raises UserError."""
    if name is None or name == GRABCUT:
        return lambda picture, prompt: grab_cut(picture, prompt.box, prompt.clicks, prompt.clicks_not)
    from ldm.segmentation.sam import SegmentAnything

    return SegmentAnything.load(name)


def find_object(picture: Image.Image, prompt: Prompt, segment: str | None = None) -> Image.Image:
    """The object's mask in an upright RGB picture: L, 255 = the object, of the picture's size.

    segment: see load_segmenter. Raises UserError: a click or box beside the picture, no object found there."""
    width, height = picture.size
    for x, y in (*prompt.clicks, *prompt.clicks_not):
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"click {x},{y} is not on the photo, which is {width} x {height} pixels: correct it")
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        box = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise UserError(
                f"box {x0},{y0},{x1},{y1} contains nothing of the photo, which is {width} x {height} pixels: give"
                " x0,y0,x1,y1 with x0 < x1 and y0 < y1"
            )
        prompt = Prompt(box, prompt.clicks, prompt.clicks_not)
    found = load_segmenter(segment)(np.asarray(picture), prompt)
    if not found.any():
        where = "in the box" if prompt.box else "at the clicks"
        raise UserError(f"no object is found {where}: add a click on it, or mark the region by a mask or a polygon")
    return Image.fromarray(np.where(found, 255, 0).astype(np.uint8))


def without_background(picture: Image.Image, segment: str | None = None) -> Image.Image:
    """A picture of any mode that shows one object -> RGBA, upright, transparent around the object.

    segment: see load_segmenter. Raises UserError if no object stands out."""
    rgb = upright_rgb(picture)
    margin = [max(1, round(BORDER * side)) for side in rgb.size]
    try:
        box = (*margin, rgb.width - margin[0], rgb.height - margin[1])
        mask = find_object(rgb, Prompt(box), segment)
    except UserError:  # also where a picture of a few pixels leaves no box
        mask = Image.new("L", rgb.size)
    if np.asarray(mask).mean() < 255 * MIN_SHARE:
        raise UserError(
            f"{name_of(picture, 'reference')} shows no object that stands out from its background: cut it out in a"
            " drawing program, or give its mask"
        )
    rgb.putalpha(mask)
    return rgb
