"""Strategies of picture files: any format, mode, depth, profile, orientation and metadata, sound or damaged."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ldm.images import ORIENTATION, TURNS

MODES = {  # format -> modes that Pillow writes in it
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "AVIF": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
}
ENDINGS = {"PNG": ".png", "TIFF": ".tif", "JPEG": ".jpg", "WEBP": ".webp", "JPEG2000": ".jp2", "AVIF": ".avif",
           "GIF": ".gif", "BMP": ".bmp", "PPM": ".ppm", "TGA": ".tga"}  # fmt: skip
EXACT = {"WEBP": {"lossless": True, "exact": True}, "JPEG2000": {"irreversible": False}}  # options that keep all pixels
KEEPS_METADATA = ("PNG", "TIFF", "JPEG", "WEBP")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
sides = st.integers(1, 40)
sizes = st.tuples(sides, sides)


@dataclass(frozen=True)
class File:
    """data: the file's bytes. picture: what was saved, as stored, without metadata. orientation: that of its EXIF, if
    it is sound. exact: the format keeps every pixel; damaged: bytes are missing or changed."""

    data: bytes
    format: str
    picture: Image.Image
    orientation: int
    profile: bytes | None
    exact: bool
    damaged: bool

    @property
    def name(self) -> str:
        return f"picture{ENDINGS[self.format]}"

    @property
    def size(self) -> tuple[int, int]:
        """Upright."""
        return self.picture.size[::-1] if self.orientation in (5, 6, 7, 8) else self.picture.size

    def turned(self, picture: Image.Image) -> Image.Image:
        return picture.transpose(TURNS[self.orientation]) if self.orientation in TURNS else picture


@st.composite
def arrays(draw, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """(H,W,channels) uint8: noise, a gradient or one colour."""
    width, height = size
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["noise", "gradient", "plain"]))
    if kind == "noise":
        return rng.integers(0, 256, (height, width, channels), np.uint8)
    if kind == "plain":
        return np.broadcast_to(rng.integers(0, 256, channels, np.uint8), (height, width, channels)).copy()
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 255 // max(1, width + height - 2)
    return np.repeat(ramp[..., None], channels, axis=2).astype(np.uint8)


@st.composite
def plain_pictures(draw, mode: str) -> Image.Image:
    """A picture of this mode, without metadata."""
    size = draw(sizes)
    pixels = draw(arrays(size, 4))
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        scale = draw(st.sampled_from([1, 257] if mode == "I" else [1 / 255, 1, 257]))
        values = pixels[..., 0] * np.array(scale, np.float64)
        if mode == "F" and draw(st.booleans()):
            values[0, 0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30]))
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    if mode in ("RGBA", "CMYK"):
        return Image.frombytes(mode, size, pixels.tobytes())
    rgb = Image.fromarray(pixels[..., :3])
    if mode == "LAB":
        return Image.frombytes("LAB", size, pixels[..., :3].tobytes())
    return rgb.quantize(16) if mode == "P" else rgb.convert(mode)


def _profiles() -> st.SearchStrategy[bytes | None]:
    others = [ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes() for kind in ("LAB", "XYZ")]
    display = bytearray(SRGB)
    at = display.find(b"rXYZ") + 4
    place = int.from_bytes(display[at : at + 4], "big") + 8
    display[place : place + 12] = struct.pack(">3i", *(round(65536 * x) for x in (0.515, 0.241, -0.001)))  # wide red
    cut = st.integers(0, len(SRGB)).map(lambda n: SRGB[:n])
    return st.one_of(st.none(), st.just(SRGB), st.sampled_from([*others, bytes(display)]), st.binary(max_size=200), cut)


profiles = _profiles()
KEYS = ("Comment", "transparency", "icc_profile", "gamma", "dpi", "exif", "bits", "background", "paint-by-example")
KEYS += ("XML:com.adobe.xmp", "Raw profile type exif")
texts = st.dictionaries(st.sampled_from(KEYS), st.text(max_size=30), max_size=3)
exifs = st.one_of(st.none(), st.integers(0, 9), st.binary(max_size=40))  # none, an orientation, or broken


def _exif_bytes(exif: int | bytes) -> bytes:
    if isinstance(exif, bytes):
        return b"Exif\0\0" + exif
    tags = Image.Exif()
    tags[ORIENTATION] = exif
    return tags.tobytes()


@st.composite
def picture_files(draw, formats: tuple[str, ...] = tuple(MODES), modes: tuple[str, ...] | None = None,
                  damage: bool = False) -> File:  # fmt: skip
    """modes: to choose from, where the format has them."""
    kind = draw(st.sampled_from(formats))
    mode = draw(st.sampled_from([mode for mode in MODES[kind] if not modes or mode in modes]))
    picture = draw(plain_pictures(mode))
    options = dict(EXACT.get(kind, {}))
    if kind == "TIFF" and mode not in ("LAB", "F", "I"):
        options["compression"] = draw(st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    if kind == "JPEG":
        options |= {"quality": draw(st.integers(1, 100)), "progressive": draw(st.booleans())}
    if kind in ("PNG", "GIF") and mode in ("P", "L", "RGB") and draw(st.booleans()):
        clear = draw(st.integers(0, 15))
        options["transparency"] = (clear, clear, clear) if mode == "RGB" and kind == "PNG" else clear
        if mode == "RGB" and kind == "GIF":
            options.pop("transparency")
    profile, exif, orientation = None, None, 1
    if kind in KEEPS_METADATA:
        profile, exif = draw(profiles), draw(exifs)
        if exif is not None:
            orientation = exif if exif in TURNS else 1
            options["exif"] = _exif_bytes(exif)
        if profile is not None:
            options["icc_profile"] = profile
    if kind == "TIFF" and exif is not None:
        options.pop("exif")
        if exif in range(1, 9):  # libtiff writes no other
            options["tiffinfo"] = ImageFileDirectory_v2()
            options["tiffinfo"][ORIENTATION] = exif
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        for key, value in draw(texts).items():
            add = draw(st.sampled_from([options["pnginfo"].add_itxt, options["pnginfo"].add_text]))
            add(key, value.encode("ascii", "ignore").decode(), zip=draw(st.booleans()))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    data = buffer.getvalue()
    if damage:
        data = draw(damaged(data))
    exact = kind not in ("JPEG", "AVIF") and not (kind == "GIF" and mode == "RGB")
    if isinstance(exif, bytes):
        orientation = 0  # whatever it says
    return File(data, kind, picture, orientation, profile, exact, damage)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """Cut off, or with a few bytes changed, or with a part repeated or left out."""
    kind = draw(st.sampled_from(["cut", "bytes", "without", "chunk"]))
    at = draw(st.integers(0, len(data) - 1))
    if kind == "cut":
        return data[:at]
    if kind == "without":
        return data[:at] + data[at + draw(st.integers(1, 16)) :]
    if kind == "chunk" and data.startswith(b"\x89PNG"):
        name = draw(st.sampled_from([b"tEXt", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"tRNS", b"pHYs"]))
        body = draw(st.binary(max_size=20))
        chunk = struct.pack(">I4s", len(body), name) + body + struct.pack(">I", zlib.crc32(name + body))
        return data[:33] + chunk + data[33:]
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)
