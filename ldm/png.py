"""PNG files made safe for Pillow, which refuses sound pixels for what stands beside them: text or a profile of more
than 1 MB, a wrong checksum, a broken chunk. It also reads what stands after the pixels only when it decodes them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_METADATA = 2**25  # bytes, unpacked, of a profile and of all text; what exceeds it is ignored
ASIDE = (b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # the chunks beside the pixels that are read
TEXTS = (b"paint-by-example", b"XML:com.adobe.xmp", b"Raw profile type exif")  # others are never looked at


def readable_png(file: BinaryIO, with_pixels: bool = True) -> tuple[io.BytesIO, bytes | None, int]:
    """file: at its start -> a PNG with the same pixels and all readable metadata before them, the colour profile, and
    the bits of a sample. with_pixels: False stops it where the pixels begin, which is enough for Pillow to open it.

    A file that is damaged stays so: Pillow says what is wrong with it."""
    head, pixels, profile, bits, room = [file.read(len(SIGNATURE))], [], None, 8, MAX_METADATA
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
