"""Picture files of any kind to upright 8-bit RGB or masks, and pictures side by side."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from ldm.files import Walk, walk
from ldm.pictures.colour import eight_bit, in_srgb, rgb_in_own_space, rgb_profile, tell_if_dark
from ldm.pictures.metadata import ORIENTATION, WITHOUT_PIXELS, open_tolerantly, without_mapping, without_metadata
from ldm.storage import is_url, place
from ldm.util import UserError, UserNote

with contextlib.suppress(ImportError):  # HEIC, the photos of phones, for those who installed it
    from pillow_heif import register_heif_opener

    register_heif_opener()

HEIC = {".heic", ".heif"}
TURNS = {  # value of ORIENTATION -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, LookupError, TypeError, struct.error)  # of Pillow
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # keys of Image.info, may contain ORIENTATION
JPEG = b"\xff\xd8"
HEADER_BYTES = 16384  # at the start of a JPEG, which contain its size
Colour = str | tuple[int, int, int]  # a name, or RGB of 0..255


@functools.cache
def picture_endings() -> frozenset[str]:
    """Extensions, lower case, of the files that count as pictures: of every format whose pixels Pillow reads."""

    def is_read(name: str) -> bool:
        opener = Image.OPEN.get("JPEG" if name == "MPO" else name, (None,))[0]  # JPEG's opens MPO as well
        is_stub = isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
        return opener is not None and not is_stub and name not in WITHOUT_PIXELS

    return frozenset(ending for ending, name in Image.registered_extensions().items() if is_read(name))


@contextlib.contextmanager
def _reading(path: str | os.PathLike, name: str) -> Iterator[None]:
    """Errors about a picture file in this block become UserErrors."""
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait forever
        raise UserError(f"{name} {path} is not a regular file: give a picture")
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{name} {path} does not exist: check the path") from error
    except UnidentifiedImageError as error:
        ending = os.path.splitext(path)[1].lower()
        cure = "pip install pillow-heif, or use JPEG" if ending in HEIC - picture_endings() else "use PNG or JPEG"
        raise UserError(f"{name} {path} is not a picture that can be read: {cure}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} {path} has too many pixels ({error}): make it smaller") from error
    except DAMAGED as error:
        raise UserError(f"{name} {path} cannot be read ({error}): save it again as PNG or JPEG") from error


def pictures_below(folder: Path) -> Walk:
    """All picture files of a folder and its subfolders, without hidden ones; see ldm.files.walk.

    Raises UserError: a missing folder, no pictures in it."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist: give the one that contains the pictures")
    found = walk(folder, picture_endings())
    if not found.files:
        raise UserError(
            f"folder {folder} contains no pictures ({found.summary('pictures')}): give a folder of JPEG, PNG or other "
            "pictures"
        )
    return found


def _source(path: str | os.PathLike) -> str | os.PathLike | bytes:
    """The path of a file on a disk, the bytes of one in storage."""
    return place(path).read_bytes() if is_url(path) else path


def open_picture(path: str | os.PathLike, name: str, data: bytes | None = None) -> Image.Image:
    """A decoded picture file, with the mode and EXIF of the file. name: what the picture is, for errors; data: the
    file's bytes, if it is not on a disk.

    Raises UserError: missing, not a picture, damaged, too many pixels."""
    if data is None and os.path.isdir(path):
        raise UserError(f"{name} {path} is a folder: give a picture in it")
    with _reading(path, name), open_tolerantly(_source(path) if data is None else data) as image:
        image.load()
        if is_url(path):
            image.filename = os.fspath(path)  # type: ignore[attr-defined]
        return image


def pixels_in_header(path: str | os.PathLike | bytes) -> int:
    """How many pixels a picture file, or its bytes, has, by its header. Raises as Image.open does."""
    with open_tolerantly(path, with_pixels=False) as image:
        return image.width * image.height


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of a picture turned as its EXIF says. Decodes only TIFF, which Pillow turns when it loads it."""
    if image.format == "TIFF":
        without_mapping(image).load()
    return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size


def size_in_header(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height), upright, of a picture file, from its header. Raises UserError: missing, not a picture."""
    with _reading(path, "image"):
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEADER_BYTES)
        may_be_turned = b"Exif\0" in head or b"tiff:Orientation" in head
        if head.startswith(JPEG) and not may_be_turned:  # the common case, in a third of Pillow's time
            try:
                height, width, *_ = simplejpeg.decode_jpeg_header(head)
                return width, height
            except ValueError:  # a longer header, or a damaged one
                pass
        with open_tolerantly(path, with_pixels=False) as image:
            return upright_size(image)


class PictureFile:
    """A picture file in memory: its size is known, its pixels are decoded on request.

    size: (width, height), upright. data: the file's bytes, read from `path` if not given; mask: those of the mask of
    its objects (ldm/data/object_masks.py), if it is not beside `path`. Raises UserError: missing, not a picture."""

    def __init__(self, path: str | os.PathLike, data: bytes | None = None, mask: bytes | None = None):
        self.path, self.mask = path, mask
        with _reading(path, "image"):
            self.data = place(path).read_bytes() if data is None else data
            self.header = open_tolerantly(self.data)
            self.size = upright_size(self.header)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """(H,W,3) uint8 RGB, upright. reduction: 1, 2, 4 or 8, by which both sides are divided (rounded up); a JPEG is
        decoded directly at that size, which takes less time. Raises UserError if the file is damaged."""
        with _reading(self.path, "image"):
            if self.header.format == "JPEG" and self.header.mode in ("RGB", "L"):
                width, height = (-(-side // reduction) for side in self.header.size)
                pixels = _decode_jpeg(self.data, width, height)
                profile = self.header.info.get("icc_profile")
                if (turn := TURNS.get(_orientation(self.header))) is not None or profile:
                    picture = Image.fromarray(pixels)
                    if own := rgb_profile(profile or b"", self.header.mode):
                        picture.info["icc_profile"] = own
                    picture = in_srgb(picture)
                    pixels = np.asarray(picture if turn is None else picture.transpose(turn))
            else:
                self.header.load()
                pixels = np.asarray(upright_rgb(self.header).reduce(reduction))
            if pixels.shape[1::-1] != tuple(-(-side // reduction) for side in self.size):
                raise ValueError("its header contains another size")
        return pixels


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def _decode_jpeg(data: bytes, width: int, height: int) -> np.ndarray:
    """(H,W,3) uint8 RGB, of the smallest size that is at least this one. Raises ValueError: damaged."""
    size = {"min_width": width, "min_height": height, "min_factor": 1}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", **size)
    except ValueError:  # it also refuses a broken profile
        return simplejpeg.decode_jpeg(without_metadata(data), "RGB", **size)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) without readable EXIF."""
    if image.format == "PNG" and not set(METADATA) & image.info.keys():
        return 1  # Pillow would decode the file to look for EXIF at its end
    for _ in range(2):  # Pillow raises many kinds of errors for damaged EXIF, but keeps what it has read before
        try:
            found = Image.Image.getexif(image).get(ORIENTATION, 1)
            return found if found in tuple(TURNS) else 1
        except Exception:
            continue
    return 1


def _upright(image: Image.Image) -> Image.Image:
    """8 bits, turned as its EXIF says; unreadable EXIF is ignored."""
    without_mapping(image).load()  # a PNG may say only after its pixels how it is turned
    turn, picture = TURNS.get(_orientation(image)), eight_bit(image)
    if isinstance(picture.info.get("transparency"), str):  # a PNG's text of this name, in a picture that Pillow opened
        picture = picture.copy()
        del picture.info["transparency"]
    if turn is None:
        return picture
    picture = picture.transpose(turn)
    for key in METADATA:
        picture.info.pop(key, None)  # it would be turned again
    return picture


def _over(rgb: Image.Image, picture: Image.Image, background: Colour) -> Image.Image:
    """The colours `rgb` of a picture, over the background where the picture is transparent."""
    if not _is_transparent(picture):
        return rgb
    profile, layer = rgb.info.get("icc_profile"), rgb.convert("RGBA")
    layer.putalpha(picture.convert("RGBA").getchannel("A"))
    opaque = Image.alpha_composite(Image.new("RGBA", rgb.size, background), layer).convert("RGB")
    if profile:
        opaque.info["icc_profile"] = profile
    return opaque


def upright_rgb(image: Image.Image, background: Colour = "white") -> Image.Image:
    """Any mode and colour profile -> RGB in sRGB, turned as its EXIF says, over the background where it is
    transparent."""
    picture = _upright(image)
    rgb = in_srgb(rgb_in_own_space(picture))
    tell_if_dark(rgb, image, name_of(image, "picture"))
    return _over(rgb, picture, background)


def upright_photo(image: Image.Image) -> Image.Image:
    """As upright_rgb, on white, but with the numbers of the file if it is grey or RGB: info["icc_profile"] then says
    what they mean, see ldm.pictures.colour."""
    picture = _upright(image)
    rgb = rgb_in_own_space(picture)
    tell_if_dark(rgb, image, name_of(image, "photo"))
    return _over(rgb, picture, "white")


def upright_alpha(image: Image.Image) -> Image.Image | None:
    """The picture's opacity, L, 255 = opaque, turned as its EXIF says; None if it has no transparency."""
    picture = _upright(image)
    return picture.convert("RGBA").getchannel("A") if _is_transparent(picture) else None


def have_same_proportions(a: Image.Image, b: Image.Image) -> bool:
    """Whether two pictures have the same proportions, up to 1% or 2 pixels."""
    width = a.width * b.height / a.height  # of a, scaled to b's height
    return abs(width - b.width) <= max(2.0, 0.01 * b.width)


def name_of(picture: Image.Image, name: str) -> str:
    """`name`, followed by the picture's path if it came from a file."""
    return f"{name} {path}" if (path := getattr(picture, "filename", "")) else name


def upright_mask(mask: Image.Image, image: Image.Image) -> Image.Image:
    """A mask of any mode, as opened -> L, 255 = paint, upright, of any size with the image's proportions.

    image: as opened, with its EXIF. A mask that was painted over the image's stored pixels, which lie on their side, is
    turned with the image. Raises UserError if the proportions do not fit, or nothing is white."""
    turned, upright = _upright(mask), _upright(image)
    if not have_same_proportions(turned, upright) and have_same_proportions(mask, image):
        stored = mask.copy()
        stored.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        turned = _upright(stored)
    if not have_same_proportions(turned, upright):
        raise UserError(
            f"{name_of(mask, 'mask')} is {turned.width} x {turned.height} but the image is {upright.width} x "
            f"{upright.height}: use a mask with the image's proportions"
        )
    white = _over(turned.convert("RGB"), turned, "black").convert("L")
    brightest = int(np.asarray(white).max())
    if brightest < 128:
        raise UserError(
            f"{name_of(mask, 'mask')} has nothing to paint (its brightest value is {brightest}): make the region white,"
            " 255, on black"
        )
    if note := note_about_mask(mask):
        warnings.warn(note, UserNote, stacklevel=2)
    return white


def note_about_mask(mask: Image.Image) -> str | None:
    """What is odd about a mask, as opened, that is probably a photo: it has colours, or is grey on two thirds and more.

    Of masks with edges as soft as a tenth of their shorter side (standard deviation of a Gaussian) at most 57% is grey,
    of photos 75% and more."""
    picture, step = _upright(mask), max(1, min(mask.size) // 512)
    levels = np.asarray(_over(picture.convert("RGB"), picture, "black"))[::step, ::step]
    darkest, brightest = levels.min(axis=2), levels.max(axis=2)
    coloured, grey = brightest - darkest > 32, (darkest < 224) & (brightest > 31)
    if coloured.mean() <= 0.01 and grey.mean() <= 2 / 3:
        return None
    cure = "--alpha takes what is erased in a photo" if _is_transparent(picture) else "make the region white, on black"
    return f"{name_of(mask, 'mask')} looks like a photo, of which what is bright is painted: {cure}"


def grid(pictures: Sequence[Image.Image], rows: int, gap: int = 2) -> Image.Image:
    """Pictures of one size, row by row, on white. gap: between them, pixels."""
    rows = min(rows, len(pictures))
    columns = -(-len(pictures) // rows)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet
