"""Where the objects are in a data set's pictures, for a model that hides what surrounds a reference.

images/<folder>/<id>.jpg   a picture
masks/<folder>/<id>.png    its objects: greyscale of its size, 0 where there is none, a number of its own for each
"""

from __future__ import annotations

import os

import numpy as np

from ldm.data.masks import Box
from ldm.images import PictureFile, open_picture
from ldm.storage import Place, place
from ldm.util import UserError


class NoMask(UserError):
    """A picture has no place for a mask."""


def mask_path(picture: Place) -> Place:
    """Raises NoMask: a picture outside a folder images/."""
    before, folder, after = os.fspath(picture).rpartition("images/")
    if not folder or before[-1:] not in ("", "/"):
        raise NoMask(f"image {picture} is not in a folder images/: its objects would be beside that, in masks/")
    return place(f"{before}masks/{after.rpartition('.')[0]}.png")


def mask_bytes(picture: Place) -> bytes | None:
    """The file of a picture's mask, or None if it has none."""
    try:
        return mask_path(picture).read_bytes()
    except (FileNotFoundError, NoMask):
        return None


def object_in(picture: PictureFile, box: Box, region: Box) -> np.ndarray:
    """(h,w) uint8, the region of the picture's mask, 255 = the object whose bounding box is most like `box`.

    Raises UserError: no mask, a damaged one, one without objects or of another size than the picture."""
    path = mask_path(picture.path)
    numbers = np.asarray(open_picture(path, "mask", picture.mask).convert("L"))
    if numbers.shape[::-1] != picture.size:
        raise UserError(
            f"mask {path} is {numbers.shape[1]} x {numbers.shape[0]} but its picture is {picture.size[0]} x "
            f"{picture.size[1]}: use a mask of the picture's size"
        )
    found = {number: bounding_box(numbers == number) for number in np.unique(numbers[numbers > 0]).tolist()}
    if not found:
        raise UserError(f"mask {path} shows no object: use a number above 0 for each")
    nearest = min(found, key=lambda number: sum(abs(a - b) for a, b in zip(found[number], box, strict=True)))
    x0, y0, x1, y1 = region
    return np.where(numbers[y0:y1, x0:x1] == nearest, np.uint8(255), np.uint8(0))


def bounding_box(pixels: np.ndarray) -> Box:
    """pixels (H,W) bool, some of them true."""
    rows, columns = pixels.any(axis=1).nonzero()[0], pixels.any(axis=0).nonzero()[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
