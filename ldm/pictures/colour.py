"""What the numbers in a picture file mean: their scale, and their colour profile. Everything becomes 8-bit sRGB.

| values                     | white is                                                                               |
|----------------------------|----------------------------------------------------------------------------------------|
| whole, of 9 to 16 bits     | the largest number of that many bits, as the format says; of signed ones half of it    |
| whole, of 32 bits          | 255, 65535 or 2^31 - 1: the first that is at least half the median of what is above 0  |
| floats                     | 1, 255 or 65535: the first that is at least half the median of what is above 0         |

Half of the values would have to be wrong to change the scale. Infinity is white; NaN and what is below 0 are black.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageCms

from ldm.util import UserNote

WHITE_OF_FLOATS = (1, 2**8 - 1, 2**16 - 1)
WHITE_OF_32_BITS = (2**8 - 1, 2**16 - 1, 2**31 - 1)
BITS_PER_SAMPLE, SAMPLE_FORMAT, SIGNED = 258, 339, 2  # TIFF tags
DARK = 16  # a picture with most values below white / DARK may be one with another white
SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK", "LAB": b"Lab "}  # mode -> colour space in a profile's header


def _white(image: Image.Image, values: np.ndarray) -> float:
    """The value that is white in a picture of mode I;16, I or F."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (32,))[0] if image.mode == "I" else 16
    if image.mode.startswith("I;"):
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if image.format in ("PNG", "PPM"):  # their numbers reach 65535, in mode I as well
        bits = 16
    if image.mode != "F" and bits < 32:
        return 2 ** (bits - (tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED)) - 1
    known = WHITE_OF_FLOATS if image.mode == "F" else WHITE_OF_32_BITS
    positive = values[np.isfinite(values) & (values > 0)]
    typical = float(np.median(positive)) if positive.size else 0.0
    return next((white for white in known if typical <= 2 * white), known[-1])


def eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats -> 8-bit L, by the table above; other modes are unchanged."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    white = _white(image, values)
    values = np.nan_to_num(values, nan=0.0, posinf=white, neginf=0.0)
    grey = Image.fromarray((values * (255.0 / white)).round().clip(0, 255).astype(np.uint8))
    grey.info |= image.info
    if isinstance(clear := grey.info.pop("transparency", None), int):  # the value that is transparent
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def tell_if_dark(rgb: Image.Image, image: Image.Image, name: str) -> None:
    """Warn of a picture of 9 to 16 bits, as opened, that hardly shows anything as RGB. name: for the message."""
    of_png = image.info.get("bits")  # a text, if Pillow opened a file with one of this name
    bits = max(of_png if isinstance(of_png, int) else 8, *getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
    if 8 < bits <= 16 and np.quantile(np.asarray(rgb), 0.99) < 256 / DARK and np.asarray(image).any():
        message = (
            f"{name} is nearly black: 99% of its values are in the lowest {DARK}th of what its {bits} bits can hold; if"
            " its white is lower, as of 12 bits in 16, multiply its values"
        )
        warnings.warn(message, UserNote, stacklevel=2)


@functools.lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str, back: bool = False) -> ImageCms.ImageCmsTransform | None:
    """From a profile for pictures of this mode to sRGB, or `back`; None if the profile does not give one."""
    if profile[16:20] != SPACES.get(mode):
        return None
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        ends = ((theirs, mode), (_srgb(), "RGB"))
        (source, mode_in), (target, mode_out) = ends[::-1] if back else ends
        return ImageCms.buildTransform(
            *(source, target, mode_in, mode_out),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


@functools.lru_cache(maxsize=32)
def _is_srgb(profile: bytes) -> bool:
    """Whether a profile for RGB changes no colour by more than 2 of 255, the most by which profiles of sRGB differ."""
    if (transform := _transform(profile, "RGB")) is None:
        return True  # nothing can be done with it
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    for colours in (cube, ramp):
        seen = ImageCms.applyTransform(Image.fromarray(colours), transform)
        if np.abs(np.asarray(seen).astype(int) - colours).max() > 2:
            return False
    return True


def rgb_in_own_space(picture: Image.Image) -> Image.Image:
    """A picture of 8 bits -> RGB, the colours of what is transparent too. info["icc_profile"] says how to read them;
    without one they are sRGB. Grey and RGB keep their numbers, CMYK and Lab become sRGB if they have a profile."""
    profile = picture.info.get("icc_profile")
    mode = "L" if picture.mode in ("1", "L", "LA") else picture.mode if picture.mode in SPACES else "RGB"
    rgb = picture.convert("RGB")
    rgb.info.pop("icc_profile", None)
    if not isinstance(profile, bytes):
        return rgb
    if own := rgb_profile(profile, mode):
        rgb.info["icc_profile"] = own
    elif transform := _transform(profile, mode):
        rgb = ImageCms.applyTransform(picture.convert(mode), transform)
        rgb.info.pop("icc_profile", None)
    return rgb


def in_srgb(picture: Image.Image) -> Image.Image:
    """RGB with the profile in its info, if any -> RGB in sRGB; a profile that cannot be read is ignored."""
    profile = picture.info.get("icc_profile")
    if not profile or _is_srgb(profile):
        return picture
    converted = ImageCms.applyTransform(picture, _transform(profile, "RGB"))
    converted.info.pop("icc_profile", None)
    return converted


def from_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The inverse of `in_srgb`, for the profile that rgb_in_own_space gives."""
    if not profile or _is_srgb(profile) or (transform := _transform(profile, "RGB", back=True)) is None:
        return picture
    return ImageCms.applyTransform(picture, transform)


@functools.lru_cache(maxsize=32)
def rgb_profile(profile: bytes, mode: str) -> bytes | None:
    """The profile for what `convert("RGB")` makes of a picture of this mode with this profile, or None if there is none
    that works in both directions."""
    if mode == "L":
        profile, mode = _rgb_of_grey(profile) or b"", "RGB"
    both = mode == "RGB" and _transform(profile, "RGB") and _transform(profile, "RGB", back=True)
    return profile if both else None


def _rgb_of_grey(profile: bytes) -> bytes | None:
    """An RGB profile in which r = g = b = v has the colour that v has in a grey profile: its curve, three times."""
    try:
        tags = {profile[at : at + 4]: struct.unpack(">II", profile[at + 4 : at + 12])
                for at in range(132, 132 + 12 * struct.unpack(">I", profile[128:132])[0], 12)}  # fmt: skip
        curve, size = tags[b"kTRC"]
    except (struct.error, KeyError):
        return None
    if profile[20:24] != b"XYZ ":
        return None
    primaries = {b"rXYZ": (0.43607, 0.22249, 0.01392), b"gXYZ": (0.38515, 0.71687, 0.09708),
                 b"bXYZ": (0.14307, 0.06061, 0.71410), b"wtpt": (0.96420, 1.0, 0.82491)}  # fmt: skip
    pieces = {name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * x) for x in xyz))
              for name, xyz in primaries.items()}  # fmt: skip
    pieces |= {name: profile[at : at + length] for name, (at, length) in tags.items() if name in (b"desc", b"cprt")}
    pieces |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), profile[curve : curve + size])
    table, body, start = struct.pack(">I", len(pieces)), b"", 132 + 12 * len(pieces)
    for name, data in pieces.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = struct.pack(">I", start + len(body)) + profile[4:12] + b"mntrRGB XYZ " + profile[24:84] + b"\0" * 44
    return header + table + body
