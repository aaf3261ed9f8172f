"""The settings that a picture was made with, inside its file: JSON in a PNG's text, or in a JPEG's or WebP's EXIF."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.images import open_picture
from ldm.util import UserError

KEY = "paint-by-example"  # of the PNG's text chunk
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
ASCII = b"ASCII\0\0\0"  # EXIF's mark of a comment in ASCII
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_format(path: str | os.PathLike) -> None:
    """Raises UserError if no format that keeps settings has the file's suffix."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"{path} has no suffix of a format that can be written: use {', '.join(FORMATS)}")


def save_with_settings(picture: Image.Image, path: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """Write the picture with its settings, atomically. Settings are values that JSON can hold; those that are None or
    False are left out. PNG keeps every pixel, JPEG and WebP do not. Raises UserError: another suffix; OSError."""
    check_format(path)
    kept = {name: value for name, value in settings.items() if value is not None and value is not False}
    path, text = Path(path), json.dumps(kept)
    options: dict[str, Any] = {"format": FORMATS[path.suffix.lower()]}
    if options["format"] == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(KEY, text)
    else:
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + text.encode("ascii")  # JSON escapes everything else
        options |= {"quality": 95, "exif": exif, "icc_profile": picture.info.get("icc_profile")}
    temporary = path.with_name(f".partial-{path.name}")
    try:
        picture.save(temporary, **options)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that save_with_settings wrote. Raises UserError: not a picture, no settings in it."""
    picture = open_picture(path, "picture")
    text = getattr(picture, "text", {}).get(KEY)
    comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if text is None and isinstance(comment, bytes):
        text = comment.removeprefix(ASCII)
    try:
        return dict(json.loads(text or ""))
    except (TypeError, ValueError) as error:
        raise UserError(f"picture {path} contains no settings: give one that this program wrote") from error
