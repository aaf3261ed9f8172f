"""The settings that a picture was made with, inside its file: JSON in a PNG's text, or in a JPEG's or WebP's EXIF.

A picture names its files without their folders, so that it can be shared. Where they are is kept beside it, in
.files/<name of the picture>.json, which stays behind when the picture is passed on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.editing.options import LOADED_FILES
from ldm.files import NAME_MAX, replacing
from ldm.images import open_picture
from ldm.storage import Place, Url, is_url, place
from ldm.util import UserError, shipped

KEY = "paint-by-example"  # of the PNG's text chunk, and of the `info` of a picture in memory
PLACES = "paint-by-example files"  # of that `info`: where the files are
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
ASCII = b"ASCII\0\0\0"  # EXIF's mark of a comment in ASCII
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# settings that are paths
FILES = ("image", "regions", "references", "reference_masks", "control_image", "segment", "judge", *LOADED_FILES)
NEARBY = ".files"  # folder beside a picture, for what must not be inside it


def check_format(path: str | os.PathLike) -> None:
    """Raises UserError if no format that keeps settings has the file's suffix."""
    if place(path).suffix.lower() not in FORMATS:
        raise UserError(f"{path} has no suffix of a format that can be written: use {', '.join(FORMATS)}")


def _with_files(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The settings with change(path) in the place of every path, also of those inside lists and regions."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [changed(each) for each in value]
        if isinstance(value, dict):  # a region
            return {kind: changed(each) if kind == "mask" else each for kind, each in value.items()}
        return value

    return {name: changed(value) if name in FILES else value for name, value in settings.items()}


def _labels(settings: Mapping[str, Any]) -> dict[str, str]:
    """Path -> its name without folders; the names of different files differ: photo.jpg, photo.jpg#2."""
    labels: dict[str, str] = {}

    def label(path: str) -> str:
        if path and path not in labels:
            name, number = place(path).name, 1
            while (new := name if number == 1 else f"{name}#{number}") in labels.values():
                number += 1
            labels[path] = new
        return path

    _with_files(settings, label)
    return labels


def attach_settings(picture: Image.Image, settings: Mapping[str, Any]) -> None:
    """Put settings into the picture's `info`: values that JSON can hold; those that are None or False are left out."""
    kept = {name: value for name, value in settings.items() if value is not None and value is not False}
    labels = _labels(kept)
    picture.info[KEY] = json.dumps(_with_files(kept, lambda path: labels.get(path, path)))
    places = {label: path if is_url(path) else os.path.abspath(path) for path, label in labels.items()}
    picture.info[PLACES] = {label: path for label, path in places.items() if is_url(path) or os.path.exists(path)}


def save_with_settings(
    picture: Image.Image, path: str | os.PathLike, settings: Mapping[str, Any] | None = None
) -> None:
    """Write the picture with its settings, atomically.

    settings: as in attach_settings; {}: none; None: those in its `info`, where PaintByExample puts them. PNG keeps
    every pixel, JPEG and WebP do not. In storage the places of its files are not kept.
    Raises UserError: another suffix; OSError."""
    check_format(path)
    if settings is not None:
        picture = picture.copy()
        attach_settings(picture, settings)
    path = place(path)
    options = _options(picture, FORMATS[path.suffix.lower()])
    with replacing(path) as temporary:
        picture.save(temporary, **options)
    file = places_file(path)
    if (places := picture.info.get(PLACES)) and isinstance(file, Path):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(places))


def png_with_settings(picture: Image.Image, settings: Mapping[str, Any]) -> bytes:
    """The bytes of the file that save_with_settings writes."""
    picture, file = picture.copy(), io.BytesIO()
    attach_settings(picture, settings)
    picture.save(file, **_options(picture, "PNG"))
    return file.getvalue()


def _options(picture: Image.Image, kind: str) -> dict[str, Any]:
    """What Image.save is told, so that the file contains the settings in the picture's `info`."""
    text = picture.info.get(KEY, "{}")
    options: dict[str, Any] = {"format": kind}
    if options["format"] != "PNG":
        exif = Image.Exif()
        if text != "{}":
            exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + text.encode("ascii")  # JSON escapes everything else
        options |= {"quality": 95, "exif": exif, "icc_profile": picture.info.get("icc_profile")}
    elif text != "{}":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(KEY, text)
    return options


def read_settings(picture: str | os.PathLike | Image.Image) -> dict[str, Any]:
    """The settings inside a picture that PaintByExample returned, or inside a file.

    Raises UserError: not a picture, no settings in it."""
    name = "the picture"
    if not isinstance(picture, Image.Image):
        name, picture = f"picture {picture}", open_picture(picture, "picture")
    text = picture.info.get(KEY)
    comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if text is None and isinstance(comment, bytes):
        text = comment.removeprefix(ASCII)
    try:
        return dict(json.loads(text or ""))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name} contains no settings: give one that a command, the page or save_with_settings wrote"
        ) from error


def _exists(path: str) -> bool:
    return Url(path).exists() if is_url(path) else os.path.exists(path)


def places_file(path: Place) -> Place:
    """Where save_with_settings keeps the places of a picture's files, as JSON."""
    name = path.name
    if len(os.fsencode(name)) > NAME_MAX - len(".json"):
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.parent / NEARBY / f"{name}.json"


def find_files(path: str | os.PathLike, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the picture `path` with its files where they are: where they were when it was made, or else
    below the working folder, or beside the picture, or among those that ship. A file that is nowhere keeps its name."""
    folder, places = place(path).parent, {}
    with contextlib.suppress(OSError, TypeError, ValueError):  # the picture was passed on, or the file is damaged
        places = dict(json.loads(places_file(place(path)).read_text()))

    def find(name: str) -> str:
        ships = shipped(Path("pretrained_models") / Path(name).name)
        candidates = (str(places.get(name, name)), name, str(folder / name), str(folder / Path(name).name), str(ships))
        return next((each for each in candidates if name and _exists(each)), name)

    return _with_files(settings, find)
