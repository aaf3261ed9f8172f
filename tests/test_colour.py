"""What a picture's numbers mean: colour profiles and scales, and what may stand beside them in a file."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from ldm.editing.options import Blending
from ldm.editing.regions import box_mask
from ldm.editing.window import PlacedWindow
from ldm.images import ORIENTATION, PictureFile, open_picture, size_in_header, upright_photo, upright_rgb
from ldm.util import UserNote

D50 = (0.96420, 1.0, 0.82491)
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))  # XYZ of R, G, B
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
LEVELS = np.array([0, 40, 90, 128, 180, 255], dtype=np.uint8)
COLOURS = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), axis=-1).reshape(18, 12, 3)


def icc(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of ICC version 2."""
    text = b"test\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78), **tags}
    start, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02400000, kind, space, connection) + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", *(round(65536 * x) for x in D50)) + bytes(48)
    return head + table + body


def xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * x) for x in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


def rgb_icc(primaries, gamma: float) -> bytes:
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), map(xyz, (*primaries, D50)), strict=True))
    return icc(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma)))


def grey_icc(gamma: float) -> bytes:
    return icc(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": xyz(D50), b"kTRC": curve(gamma)})


def cmyk_icc(corners: np.ndarray) -> bytes:
    """corners (16,3): Lab where each of C, M, Y, K is nothing or all, K varying fastest; linear between them."""
    levels = np.concatenate([corners[:, :1] * 652.8, (corners[:, 1:] + 128) * 256], axis=1)  # Lab of mft2
    linear = struct.pack(">2H", 0, 65535)
    table = b"mft2\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).flat)
    table += struct.pack(">2H", 2, 2) + 4 * linear + levels.round().astype(">u2").tobytes() + 3 * linear
    return icc(b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz(D50), b"A2B0": table})


def as_srgb(numbers: np.ndarray, primaries, gamma: float) -> np.ndarray:
    """What the numbers (H,W,3) of a matrix profile are in sRGB, by the formulas."""
    linear = (numbers / 255.0) ** gamma @ np.array(primaries) @ np.linalg.inv(np.array(SRGB))
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def numbers(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize(("primaries", "gamma"), [(P3, 2.2), (ADOBE, 2.19921875), (SRGB, 1.8)])
def test_every_reader_sees_srgb(primaries, gamma, ending, tmp_path):
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOURS).resize((96, 144), 0).save(path, icc_profile=rgb_icc(primaries, gamma), **options)
    with Image.open(path) as image:
        expected = as_srgb(numbers(image), primaries, gamma)
    for seen in (numbers(upright_rgb(open_picture(path, "image"))), PictureFile(path).pixels().astype(int)):
        assert np.abs(seen - expected).max() <= 3
    photo = upright_photo(open_picture(path, "image"))  # what the edit goes into keeps its numbers
    with Image.open(path) as image:
        assert np.array_equal(numbers(photo), numbers(image))


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_grey_profile(ending, tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
    options = {"quality": 100} if ending == "jpg" else {}
    Image.fromarray(ramp).save(tmp_path / f"a.{ending}", icc_profile=grey_icc(1.4), **options)
    opened = open_picture(tmp_path / f"a.{ending}", "image")
    own = np.stack([np.asarray(opened)] * 3, axis=-1)
    expected = as_srgb(own, SRGB, 1.4)
    for seen in (numbers(upright_rgb(opened)), PictureFile(tmp_path / f"a.{ending}").pixels().astype(int)):
        assert np.abs(seen - expected).max() <= 3
    photo = upright_photo(opened)
    assert np.array_equal(numbers(photo), own)
    theirs = ImageCms.ImageCmsProfile(io.BytesIO(photo.info["icc_profile"]))  # for RGB, as the result is
    srgb = ImageCms.profileToProfile(photo, theirs, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert np.abs(numbers(srgb) - expected).max() <= 3


def test_a_profile_for_cmyk(tmp_path):
    corners = np.random.default_rng(0).integers(90, 220, (16, 3)).astype(np.uint8)
    corners[0] = 255  # paper
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    seen = ImageCms.profileToProfile(Image.fromarray(corners[None]), srgb, lab, outputMode="LAB")
    signed = np.asarray(seen)[0].astype(float) * (100 / 255, 1, 1)
    signed[:, 1:] = (signed[:, 1:] + 128) % 256 - 128
    inks = np.array([[255 * (i >> bit & 1) for bit in (3, 2, 1, 0)] for i in range(16)], dtype=np.uint8)
    Image.fromarray(inks[None].repeat(9, 0), "CMYK").save(tmp_path / "a.tif", icc_profile=cmyk_icc(signed))
    for found in (upright_rgb(open_picture(tmp_path / "a.tif", "image")), PictureFile(tmp_path / "a.tif").pixels()):
        assert np.abs(numbers(found)[4] - corners.astype(int)).max() <= 4
    assert "icc_profile" not in upright_photo(open_picture(tmp_path / "a.tif", "image")).info


def test_what_is_painted_is_converted_into_the_photos_profile_and_the_rest_keeps_its_numbers():
    profile = rgb_icc(P3, 2.2)
    photo = Image.fromarray(COLOURS).resize((96, 144), 0)
    photo.info["icc_profile"] = profile
    place = PlacedWindow.around(upright_photo(photo), box_mask(photo.size, (20, 30, 70, 90)), 32)
    assert np.abs(numbers(place.picture) - as_srgb(numbers(photo.crop(place.window)), P3, 2.2)).max() <= 3
    red = Image.new("RGB", place.picture.size, (200, 60, 40))
    out = place.paste(red, Blending(feather=0))
    outside = np.asarray(place.mask) == 0
    assert np.array_equal(numbers(out)[outside], numbers(photo)[outside]) and out.info["icc_profile"] == profile
    inside = as_srgb(numbers(out)[~outside], P3, 2.2)
    assert np.abs(inside - (200, 60, 40)).max() <= 3


def test_profiles_that_change_nothing(tmp_path):
    """Of sRGB itself, of other colours than the picture's, and damaged: the numbers stay to the bit."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, grey_icc(2.2), b"garbage", srgb[:300], b"\0" * 200, srgb[:128] + b"\xff" * 400):
        Image.fromarray(COLOURS).save(tmp_path / "a.png", icc_profile=profile)
        Image.fromarray(COLOURS).save(tmp_path / "a.jpg", icc_profile=profile)
        assert np.array_equal(numbers(upright_rgb(open_picture(tmp_path / "a.png", "image"))), COLOURS)
        with Image.open(tmp_path / "a.jpg") as image:
            assert np.array_equal(numbers(upright_rgb(open_picture(tmp_path / "a.jpg", "image"))), numbers(image))
        assert np.array_equal(PictureFile(tmp_path / "a.png").pixels(), COLOURS)


RAMP = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (100, 1))


@pytest.mark.parametrize("stray", [None, 1.016, 3000.0, np.inf, -np.inf, np.nan, -5.0])
@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_a_stray_value_does_not_turn_the_scale_of_floats(white, stray, tmp_path):
    values = (RAMP / 255.0 * white).astype(np.float32)
    if stray is not None:
        values[::7, ::5] = stray
    Image.fromarray(values).save(tmp_path / "a.tif")
    seen = numbers(upright_rgb(open_picture(tmp_path / "a.tif", "image")))[..., 0]
    usual = values == (RAMP / 255.0 * white).astype(np.float32)
    assert np.abs(seen - RAMP)[usual].max() <= 1


@pytest.mark.parametrize("kind", ["16-bit png", "16-bit tiff", "32-bit tiff"])
def test_a_stray_value_does_not_turn_the_scale_of_whole_numbers(kind, tmp_path):
    values = RAMP.astype(np.int32) * 257
    values[3, 4], values[5, 6] = 65535, 0
    if kind == "32-bit tiff":
        values[7, 8] = 2**31 - 1
    path = tmp_path / f"a.{kind[-4:].strip()}"
    Image.fromarray(values if kind == "32-bit tiff" else values.astype(np.uint16)).save(path)
    seen = numbers(upright_rgb(open_picture(path, "image")))[..., 0]
    assert np.abs(seen - RAMP)[values == RAMP.astype(int) * 257].max() == 0
    if kind != "32-bit tiff":  # all are dark: they stay so, and it is said
        Image.fromarray((RAMP // 2).astype(np.uint16)).save(path)
        with pytest.warns(UserNote, match="nearly black"):
            assert numbers(upright_rgb(open_picture(path, "image"))).max() <= 1


def chunk(kind: bytes, data: bytes, damaged: bool = False) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data) ^ damaged)


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG")
    data = file.getvalue()
    pixels, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:pixels] + before + data[pixels:end] + after + data[end:]


EXIF = Image.Exif()
EXIF[ORIENTATION] = 6
TURN = EXIF.tobytes()[6:]
PACKED = zlib.compress(b"a" * 3_000_000)
IMAGEMAGICKS = b"\nexif\n 9\n" + EXIF.tobytes().hex().encode()
XMP = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"b" * 2_000_000 + b'tiff:Orientation="6"')
LARGE = rgb_icc(SRGB, 1.8) + bytes(2_000_000)


@pytest.mark.parametrize(
    ("before", "after", "turned"),
    [
        (chunk(b"zTXt", b"Comment\0\0" + PACKED), b"", False),
        (chunk(b"iTXt", b"Comment\0\1\0\0\0" + PACKED), b"", False),
        (b"", chunk(b"zTXt", b"Comment\0\0" + PACKED), False),
        (chunk(b"tEXt", b"Comment\0ab", damaged=True), b"", False),
        (chunk(b"zTXt", b"Comment\0\7ab"), chunk(b"pHYs", b"\0"), False),
        (chunk(b"pHYs", b"\0") + chunk(b"gAMA", b"") + chunk(b"sRGB", b"") + chunk(b"cHRM", b"1"), b"", False),
        (chunk(b"tEXt", b"transparency\0ab") + chunk(b"tEXt", b"icc_profile\0ab"), b"", False),
        (chunk(b"acTL", b"\0"), b"", False),
        (chunk(b"eXIf", b"garbage"), b"", False),
        (chunk(b"eXIf", TURN), b"", True),
        (b"", chunk(b"eXIf", TURN), True),
        (b"", chunk(b"iTXt", XMP), True),
        (chunk(b"iTXt", XMP), b"", True),
        (b"", chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(IMAGEMAGICKS)), True),
    ],
)  # fmt: skip
def test_what_stands_beside_the_pixels_of_a_png(before, after, turned, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(before, after))
    expected = np.rot90(COLOURS, -1) if turned else COLOURS
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert size_in_header(path) == PictureFile(path).size == expected.shape[1::-1]
    assert np.array_equal(PictureFile(path).pixels(), expected)
    opened = open_picture(path, "image")
    assert np.array_equal(numbers(upright_rgb(opened)), expected) and opened.filename == str(path)


def test_a_profile_of_megabytes_counts(tmp_path):
    (tmp_path / "a.png").write_bytes(png(chunk(b"iCCP", b"x\0\0" + zlib.compress(LARGE))))
    expected = as_srgb(COLOURS, SRGB, 1.8)
    assert np.abs(numbers(upright_rgb(open_picture(tmp_path / "a.png", "image"))) - expected).max() <= 3
    assert np.abs(PictureFile(tmp_path / "a.png").pixels() - expected).max() <= 3


def test_settings_are_read_wherever_they_stand(tmp_path):
    text = PngInfo()
    text.add_itxt("paint-by-example", "x", zip=True)
    Image.fromarray(COLOURS).save(tmp_path / "a.png", pnginfo=text)
    assert open_picture(tmp_path / "a.png", "image").text == {"paint-by-example": "x"}
