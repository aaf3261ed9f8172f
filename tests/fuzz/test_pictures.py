"""Whatever a picture file contains: its sound pixels, upright, or one sentence."""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.images import PictureFile, open_picture, size_in_header, upright_photo, upright_rgb
from ldm.util import UserError, UserNote
from tests.fuzz.pictures import SRGB, File, picture_files

pytestmark = pytest.mark.filterwarnings("ignore::ldm.util.UserNote", "ignore::UserWarning")


def written(file: File, folder: str) -> Path:
    path = Path(folder) / file.name
    path.write_bytes(file.data)
    return path


def expected(file: File) -> np.ndarray | None:
    """The upright RGB pixels that a file without a profile must give, by Pillow's conversions alone; None: unknown."""
    if not file.exact or file.picture.mode not in ("1", "L", "P", "RGB") or file.orientation == 0:
        return None
    if file.profile not in (None, SRGB) or b"tRNS" in file.data or file.format == "GIF":
        return None
    return np.asarray(file.turned(file.picture.convert("RGB")))


@given(picture_files())
def test_a_sound_file_gives_its_pixels(file):
    with tempfile.TemporaryDirectory() as folder:
        path = written(file, folder)
        picture = open_picture(path, "image")
        rgb, photo = upright_rgb(picture), upright_photo(picture)
        decoded = PictureFile(path)
        assert rgb.mode == photo.mode == "RGB"
        assert rgb.size == photo.size == decoded.size == size_in_header(path)
        if file.orientation:
            assert rgb.size == file.size
        pixels = decoded.pixels()
        assert pixels.shape == (rgb.height, rgb.width, 3)
        if (right := expected(file)) is not None:
            np.testing.assert_array_equal(np.asarray(rgb), right)
            np.testing.assert_array_equal(np.asarray(photo), right)
            np.testing.assert_array_equal(pixels, right)


@given(picture_files(), st.sampled_from([2, 4, 8]))
def test_a_smaller_decoding_has_the_smaller_size(file, reduction):
    decoded = PictureFile("picture", file.data)
    width, height = decoded.size
    assert decoded.pixels(reduction).shape == (-(-height // reduction), -(-width // reduction), 3)


@given(picture_files(damage=True))
def test_a_damaged_file_is_read_or_refused_in_one_sentence(file):
    with tempfile.TemporaryDirectory() as folder:
        path = written(file, folder)
        for read in (
            lambda: upright_rgb(open_picture(path, "image")),
            lambda: PictureFile(path).pixels(),
            lambda: size_in_header(path),
        ):
            try:
                read()
            except UserError as error:
                assert "\n" not in str(error)


@given(picture_files(formats=("PNG", "TIFF", "JPEG", "WEBP", "BMP", "PPM", "TGA", "GIF")), st.data())
def test_a_file_that_ends_early_never_gives_other_pixels(file, data):
    whole = np.asarray(upright_rgb(open_as(file.data)))
    cut = file.data[: data.draw(st.integers(0, len(file.data) - 1))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        path.write_bytes(cut)
        for read in (lambda: upright_rgb(open_picture(path, "image")), lambda: PictureFile(path).pixels()):
            try:
                pixels = np.asarray(read())
            except UserError:
                continue
            if sorted(pixels.shape) == sorted(whole.shape) and file.orientation == 1 and file.profile is None:
                np.testing.assert_array_equal(pixels, whole)


def open_as(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@given(picture_files(formats=("PNG",), modes=("RGB",)))
def test_notes_are_notes(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UserNote)
        upright_rgb(open_as(file.data))
