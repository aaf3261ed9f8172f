"""Files that come from a browser or a call, and files that go back to it."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from pathlib import Path

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta
from PIL import Image

from ldm.editing.metadata import save_with_settings
from ldm.editing.references import TOKEN_SUFFIX, open_reference
from ldm.images import open_picture, pixels_in_header, upright_rgb
from ldm.util import UserError
from ldm.web.worker import EditResult

MAX_MEGAPIXELS = 50
MAX_MEGABYTES = 50  # of one upload
SENT = "in the request"  # where a picture without a file is


def upload_path(file: object, name: str) -> str | None:
    """The server's path of a file as Gradio passes it on after its own checks; None stays None. name: "photo", ..., for
    the error. Raises UserError: anything else, such as a path that the sender made up."""
    if file is None:
        return None
    if not is_file_obj_with_meta(file):
        raise UserError(f"the {name} was not sent as a file: send it with gradio_client's handle_file")
    return file["path"]


def open_upload(path: str | os.PathLike | None, name: str) -> Image.Image:
    """An uploaded picture, decoded, in the mode and orientation of its file; the first frame of an animation. name:
    "photo", ..., for the error; a "reference" may also be a learned token.

    Raises UserError, which names the file as its owner does: no file, a deleted one, not a picture, damaged, too many
    pixels (checked in the header, before any is decoded)."""
    if not path:
        raise UserError(f"there is no {name}: add one")
    file_name = Path(path).name
    if not os.path.exists(path):
        raise UserError(f"the {name} {file_name} was deleted after an hour: add it again")
    if _pixels_in_header(path) > MAX_MEGAPIXELS * 10**6:
        raise UserError(f"the {name} {file_name} has more than {MAX_MEGAPIXELS} megapixels: make it smaller")
    try:
        is_token = name == "reference" and Path(path).suffix.lower() == TOKEN_SUFFIX
        picture = open_reference(path) if is_token else open_picture(path, "the " + name)
    except UserError as error:
        raise UserError(str(error).replace(str(path), file_name)) from error
    picture.filename = file_name  # later errors call it so
    return picture


def open_bytes(data: bytes, name: str) -> Image.Image:
    """As open_upload, of the bytes of a picture that never was a file. Raises UserError."""
    if _pixels_in_header(data) > MAX_MEGAPIXELS * 10**6:
        raise UserError(f"the {name} has more than {MAX_MEGAPIXELS} megapixels: make it smaller")
    return open_picture(SENT, f"the {name}", data)


def _pixels_in_header(path: str | os.PathLike | bytes) -> float:
    """How many pixels a picture file has; infinity where Pillow refuses to open so many, 0 where it cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return pixels_in_header(path)
    except Image.DecompressionBombError:
        return math.inf
    except Exception:  # open_picture says what is wrong
        return 0


def fit_within(picture: Image.Image, side: int) -> Image.Image:
    """Upright RGB with no side longer than `side` pixels, for display in a browser."""
    picture = upright_rgb(picture)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def save_result(result: EditResult, photo: str | os.PathLike, block: gr.blocks.Block) -> str:
    """Writes a result with its settings as a PNG named after the photo. Returns its path in the cache of the block,
    from which Gradio serves it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{Path(photo).stem}_{result.settings['seed']}.png"
        save_with_settings(result.picture, path, result.settings)
        return block.move_resource_to_block_cache(path)
