"""What a stranger uploads -> pictures, or a sentence about what is wrong with it."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from PIL import Image

from ldm.images import open_picture, upright_rgb
from ldm.util import UserError

MAX_MEGAPIXELS = 50
MAX_FILE = "50mb"  # of one upload


def open_upload(path: str | os.PathLike | None, what: str) -> Image.Image:
    """An uploaded file, decoded, as its file has it; of several frames, the first. what: "photo", ..., for the error.

    Raises UserError that names the file as its owner does: none given, gone, no picture, damaged, too many pixels (told
    from the header, before any is decoded)."""
    if not path:
        raise UserError(f"there is no {what}; add one")
    name = Path(path).name
    if not os.path.exists(path):
        raise UserError(f"the {what} {name} was kept for an hour only; add it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as header:
                pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = math.inf
    except Exception:  # open_picture finds the words
        pixels = 0
    if pixels > MAX_MEGAPIXELS * 10**6:
        raise UserError(f"the {what} {name} has more than {MAX_MEGAPIXELS} megapixels; make it smaller")
    try:
        picture = open_picture(path, "the " + what)
    except UserError as error:
        raise UserError(str(error).replace(f" {path}:", f" {name}")) from error
    picture.filename = name  # what later errors call it
    return picture


def within(picture: Image.Image, side: int) -> Image.Image:
    """Upright RGB with no side longer than `side` pixels: what a browser is shown."""
    picture = upright_rgb(picture)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
