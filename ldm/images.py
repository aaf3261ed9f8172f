"""Any picture file to upright 8-bit RGB or a mask, and pictures side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ldm.util import UserError

ORIENTATION = 0x0112  # EXIF tag


def open_picture(path: str | os.PathLike, name: str) -> Image.Image:
    """A picture file, decoded, as its file has it (mode, EXIF). name: what it is, for the error.

    Raises UserError: missing, not a picture, damaged, too large to be one."""
    if os.path.isdir(path):
        raise UserError(f"{name} {path}: is a folder; name a picture in it")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{name} {path}: is no regular file; name a picture")
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"{name} {path}: there is no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} {path}: is not a picture that can be read; use PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} {path}: has too many pixels ({error}); make it smaller") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"{name} {path}: cannot be read ({error}); save it anew as PNG or JPEG") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey to 8-bit L; others as they are."""
    if image.mode.startswith("I"):
        array = np.asarray(image).astype(np.float64)
        array = array / 257.0 if array.max() > 255 else array
    elif image.mode == "F":
        array = np.nan_to_num(np.asarray(image).astype(np.float64))
        array = array * 255.0 if array.max() <= 1 else array
    else:
        return image
    return Image.fromarray(array.round().clip(0, 255).astype(np.uint8))


def _opaque(image: Image.Image, background: str) -> Image.Image:
    """RGB; where the picture is transparent, the background shows."""
    image = _eight_bit(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; EXIF that cannot be read says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises many kinds for many kinds of damage
        return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, turned as its EXIF says, over white where it is transparent."""
    return _opaque(_upright(image), "white")


def same_shape(a: Image.Image, b: Image.Image) -> bool:
    """Do the pictures have the same proportions, up to 1% or 2 pixels?"""
    width = a.width * b.height / a.height  # of a at b's height
    return abs(width - b.width) <= max(2.0, 0.01 * b.width)


def name_of(picture: Image.Image, name: str) -> str:
    """`name` and, where the picture came from a file, its path."""
    return f"{name} {path}" if (path := getattr(picture, "filename", "")) else name


def upright_mask(mask: Image.Image, image: Image.Image) -> Image.Image:
    """Any mode -> L, 255 = paint, upright like `image` (which is as opened, EXIF included); any size of its shape.

    A mask that was painted over the picture's pixels as stored, on their side, is turned with it.
    Raises UserError if the shapes do not fit, or nothing is white."""
    turned, upright = _upright(mask), _upright(image)
    if not same_shape(turned, upright) and same_shape(mask, image):
        stored = mask.copy()
        stored.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        turned = _upright(stored)
    if not same_shape(turned, upright):
        raise UserError(
            f"{name_of(mask, 'mask')}: is {turned.width} x {turned.height} and the image {upright.width} x "
            f"{upright.height}, shapes that do not fit; paint the mask over this image"
        )
    white = _opaque(turned, "black").convert("L")
    if white.getextrema()[1] < 128:
        raise UserError(f"{name_of(mask, 'mask')}: has nothing to paint; make the region white (255) on black")
    return white


def grid(pictures: Sequence[Image.Image], rows: int, gap: int = 2) -> Image.Image:
    """Pictures of one size, row by row, on white; gap: pixels between them."""
    rows = min(rows, len(pictures))
    columns = -(-len(pictures) // rows)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet
