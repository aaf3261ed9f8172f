"""Picture files made safe for Pillow, which refuses sound pixels for what stands beside them: in a PNG text or a
profile of more than 1 MB, a wrong checksum, a broken chunk; in a JPEG a segment that is too short; in a TIFF an entry
that points out of the file. Of a PNG it also reads what stands after the pixels only when it decodes them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # type -> bytes of a value
PNG = b"\x89PNG\r\n\x1a\n"
WITHOUT_PIXELS = {"EPS", "MPEG"}  # formats that Pillow names, but needs another program to draw, or cannot
MAX_METADATA = 2**25  # bytes, unpacked, of a profile and of all text; what exceeds it is ignored
ASIDE = (b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # the chunks beside the pixels that are read
ORIENTATION = 0x0112  # EXIF tag
TEXTS = (b"paint-by-example", b"XML:com.adobe.xmp", b"Raw profile type exif")  # others are never looked at


def open_tolerantly(source: str | os.PathLike | bytes, with_pixels: bool = True) -> Image.Image:
    """As Image.open, of a path or a file's bytes, but metadata is never a reason to refuse a picture, and no other
    program is started: an EPS is one itself, which Pillow would let Ghostscript run for as long as it takes.

    with_pixels: False if they will not be decoded, which spares reading those of a PNG."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        is_png = file.read(len(PNG)) == PNG
        file.seek(0)
        if is_png:
            data, profile, bits = readable_png(file, with_pixels)
    if not is_png:
        image = _open_repaired(source)
        if image.format in WITHOUT_PIXELS:
            raise UnidentifiedImageError(f"{image.format} has no pixels")
        return without_mapping(image)
    image = Image.open(data)
    image.info["bits"] = bits
    if profile:
        image.info["icc_profile"] = profile
    if not isinstance(source, bytes):
        image.filename = os.fspath(source)
    return image


def without_mapping(image: Image.Image) -> Image.Image:
    """The same picture as opened: where Pillow would map a TIFF's pixels that lie on their side into memory, with
    height and width exchanged, it reads them."""
    file = getattr(image, "fp", None)
    if file is not None and image.format == "TIFF" and getattr(image, "tag_v2", {}).get(ORIENTATION, 1) > 4:
        image.load_read = file.read  # type: ignore[attr-defined]  # what Pillow then uses
    return image


def _open_repaired(source: str | os.PathLike | bytes) -> Image.Image:
    """As Image.open, of a path or a file's bytes; if that fails, without what is broken beside the pixels."""
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (OSError, SyntaxError, ValueError):
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if (repaired := without_metadata(data)) is None:
            raise
        image = Image.open(io.BytesIO(repaired))
    if not isinstance(source, bytes):
        image.filename = os.fspath(source)
    return image


def readable_png(file: BinaryIO, with_pixels: bool = True) -> tuple[io.BytesIO, bytes | None, int]:
    """file: at its start -> a PNG with the same pixels and all readable metadata before them, the colour profile, and
    the bits of a sample. with_pixels: False stops it where the pixels begin, which is enough for Pillow to open it.

    A file that is damaged stays so: Pillow says what is wrong with it."""
    head, pixels, profile, bits, room = [file.read(len(PNG))], [], None, 8, MAX_METADATA
    for kind, raw in _chunks(file, with_pixels):
        if kind == b"IHDR":
            bits = raw[16] if len(raw) > 16 else 8
        if kind in ASIDE:
            data = raw[8:-4]
            if zlib.crc32(kind + data) != int.from_bytes(raw[-4:], "big"):
                continue
            if kind == b"iCCP":
                profile = _unpacked(data.partition(b"\0")[2][1:], MAX_METADATA) or profile
            elif (plain := _plain(kind, data, room)) is not None:
                room -= len(plain[1])
                head.append(_chunk(*plain))
        elif kind == b"IDAT" or (pixels and kind[:1].isupper()):
            pixels.append(raw)
        elif kind[:1].isupper() or kind == b"tRNS":
            head.append(raw)
    if not with_pixels and pixels:
        pixels = [b"\0\0\0\0IDAT"]
    return io.BytesIO(b"".join(head + pixels)), profile, bits


def _chunks(file: BinaryIO, with_pixels: bool) -> Iterator[tuple[bytes, bytes]]:
    """(kind, the chunk's bytes with length, kind and checksum) up to IEND or the end of what can be read."""
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IDAT" and not with_pixels:
            file.seek(length + 4, io.SEEK_CUR)
            yield kind, start
            continue
        raw = start + file.read(length + 4)
        if len(raw) < length + 12 and kind in ASIDE:
            return
        yield kind, raw
        if kind == b"IEND" or not kind.isalpha():
            return


def _plain(kind: bytes, data: bytes, room: int) -> tuple[bytes, bytes] | None:
    """Kind and data of a chunk of EXIF or of TEXTS, unpacked; None if it cannot be read or has more than `room` bytes.

    Pillow files a text under its key among what it knows of the pixels: no text may be called `transparency`."""
    key, _, rest = data.partition(b"\0")
    if kind != b"eXIf" and key not in TEXTS:
        return None
    if kind == b"zTXt":
        text = _unpacked(rest[1:], room)
        kind, data = b"tEXt", key + b"\0" + (text or b"")
        if text is None:
            return None
    elif kind == b"iTXt" and rest[:1] == b"\1":
        language, translated, packed = [*rest[2:].split(b"\0", 2), b"", b""][:3]
        text = _unpacked(packed, room)
        if text is None:
            return None
        data = b"\0".join([key, b"\0", language, translated, text])
    return (kind, data) if len(data) <= room else None


def _unpacked(data: bytes, room: int) -> bytes | None:
    """None if it is damaged, or longer than `room` bytes."""
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(data, room)
    except zlib.error:
        return None
    return text if stream.eof else None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def without_metadata(data: bytes) -> bytes | None:
    """The bytes of a JPEG or TIFF without what is beside the pixels and may be broken; None if it is neither. Of a JPEG
    EXIF and XMP stay, and what says how its colours are stored."""
    if data.startswith(b"\xff\xd8"):
        return _plain_jpeg(data)
    if data[:4] in (b"II*\0", b"MM\0*") and len(data) > 8:
        return _plain_tiff(bytearray(data), "<" if data[:1] == b"I" else ">")
    return None


def _plain_jpeg(data: bytes) -> bytes:
    kept, at = data[:2], 2
    while at + 4 <= len(data) and data[at] == 0xFF and (marker := data[at + 1]) != 0xDA:  # up to the scan
        segment = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        of_colours = marker == 0xEE and len(segment) >= 16
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xE1 or of_colours:
            kept += segment
        at += max(len(segment), 4)
    return kept + data[at:]


def _plain_tiff(data: bytearray, order: str) -> bytes:
    """Entries of the first directory that point out of the file become entries without a value."""
    start = struct.unpack_from(order + "I", data, 4)[0]
    count = struct.unpack_from(order + "H", data, start)[0] if start + 2 <= len(data) else 0
    for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        _, kind, length, place = struct.unpack_from(order + "HHII", data, at)
        size = length * TIFF_SIZES.get(kind, 1)
        if size > 4 and place + size > len(data):
            struct.pack_into(order + "HII", data, at + 2, 0, 0, 0)
    return bytes(data)
