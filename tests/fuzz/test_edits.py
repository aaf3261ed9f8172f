"""Whatever is marked in whatever photo: a region, or one sentence; outside of it the photo keeps its own numbers."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from ldm.editing.background import distance_to_edge
from ldm.editing.inputs import make_inputs, size_for
from ldm.editing.marked import MarkedPhoto
from ldm.editing.metadata import save_with_settings
from ldm.editing.options import BACKGROUNDS, REFERENCE_FITS, WHOLE_PHOTO, Blending, Placement
from ldm.editing.references import fit_reference
from ldm.editing.regions import Region
from ldm.editing.window import PlacedWindow
from ldm.images import open_picture, upright_photo, upright_rgb
from ldm.util import UserError
from tests.fuzz.pictures import File, picture_files, sizes

pytestmark = pytest.mark.filterwarnings("ignore::ldm.util.UserNote", "ignore::UserWarning")
NATIVE, FACTOR = 32, 8  # of a model as small as the photos

near = st.integers(-5, 45)
boxes = st.tuples(near, near, near, near)
polygons = st.lists(st.tuples(near, near), max_size=6).map(tuple)
placements = st.builds(
    Placement,
    context=st.one_of(st.none(), st.just(WHOLE_PHOTO), st.floats(1, 5)),
    grow=st.one_of(st.just(0.0), st.floats(-5, 5)),
    invert=st.booleans(),
    reference_fit=st.sampled_from(REFERENCE_FITS),
)
blendings = st.builds(
    Blending, background=st.sampled_from(BACKGROUNDS), feather=st.one_of(st.none(), st.floats(0, 10), st.just(1e4))
)


def opened(file: File, folder: str, name: str) -> Image.Image:
    path = Path(folder) / f"{name}-{file.name}"
    path.write_bytes(file.data)
    return open_picture(path, name)


@st.composite
def masks_for(draw, size: tuple[int, int]) -> Image.Image:
    """Black and white, soft or noisy, of the size, near it, or a multiple of it."""
    width, height = draw(st.sampled_from([size, size, (2 * size[0], 2 * size[1]), (size[0] + 1, size[1]), size[::-1]]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    values = np.zeros((height, width), np.uint8)
    kind = draw(st.sampled_from(["dots", "box", "grey", "empty", "full"]))
    if kind == "dots":
        values[rng.random(values.shape) < draw(st.sampled_from([0.01, 0.3]))] = 255
    elif kind == "box":
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        values[y : y + draw(st.integers(1, 40)), x : x + draw(st.integers(1, 40))] = 255
    elif kind == "grey":
        values = rng.integers(0, 256, values.shape, np.uint8)
    elif kind == "full":
        values[:] = 255
    return Image.fromarray(values).convert(draw(st.sampled_from(["L", "1", "RGB", "LA", "P", "RGBA"])))


@st.composite
def regions_for(draw, photo: Image.Image) -> Region:
    """Raises UserError as Region does."""
    kind = draw(st.sampled_from(["box", "polygon", "alpha", "mask", "mask"]))
    if kind == "mask":
        return Region(mask=draw(masks_for(photo.size)))
    return Region(box=draw(boxes)) if kind == "box" else Region(polygon=draw(polygons)) if kind == "polygon" else (
        Region(alpha=True)
    )  # fmt: skip


def paste_at(marked: MarkedPhoto, placement: Placement, blending: Blending, size: tuple[int, int]):
    """-> (the place of the edit, the photo with noise of this size painted into it)."""
    place = PlacedWindow.around(marked.photo, marked.masks[0], NATIVE, placement.context)
    x0, y0, x1, y1 = place.window
    assert 0 <= x0 < x1 <= marked.photo.width and 0 <= y0 < y1 <= marked.photo.height
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    return place, place.paste(Image.fromarray(noise), marked.blending(blending))


def assert_same_outside(place: PlacedWindow, result: Image.Image, blending: Blending, band: float) -> None:
    """What each background promises; see ldm/editing/background.py."""
    before, after = np.asarray(place.photo), np.asarray(result)
    assert after.shape == before.shape
    outside = np.ones(before.shape[:2], bool)
    x0, y0, x1, y1 = place.window
    outside[y0:y1, x0:x1] = False
    if blending.background in ("exact", "poisson"):
        outside |= np.asarray(place.mask) < 128
    if blending.background == "feather":
        outside |= distance_to_edge(np.asarray(place.mask) < 128) > band + 0.5
    np.testing.assert_array_equal(after[outside], before[outside])


@given(picture_files(), placements, blendings, sizes, st.data())
def test_outside_the_region_the_photo_stays(file, placement, blending, painted, data):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        photo = opened(file, folder, "photo")
        try:
            region = data.draw(regions_for(upright_rgb(photo)))
            marked = MarkedPhoto.mark(photo, [region], [Image.new("RGB", (8, 8))], placement)
        except UserError as error:
            assert "\n" not in str(error)
            return
        assert marked.photo.size == marked.masks[0].size
        place, result = paste_at(marked, placement, blending, painted)
        window = place.window[2] - place.window[0], place.window[3] - place.window[1]
        band = marked.blending(blending).feather
        assert_same_outside(place, result, blending, min(window) / 64 if band is None else band)
        # the file that is written contains the same numbers, and says the same about them
        save_with_settings(result, Path(folder) / "result.png", {"seed": 1})
        with Image.open(Path(folder) / "result.png") as again:
            np.testing.assert_array_equal(np.asarray(again), np.asarray(result))
            assert again.info.get("icc_profile") == result.info.get("icc_profile")


@given(picture_files(), placements, st.data())
def test_what_the_model_sees_is_finite_or_refused(file, placement, data):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        photo = opened(file, folder, "photo")
        try:
            region = data.draw(regions_for(upright_rgb(photo)))
            marked = MarkedPhoto.mark(photo, [region], [photo], placement)
            place = PlacedWindow.around(marked.photo, marked.masks[0], NATIVE, placement.context)
            references = [fit_reference(each, placement.reference_fit) for each in marked.references[0]]
            size = size_for(place.picture, NATIVE, FACTOR)
            inputs = make_inputs(place.picture, place.region, references, size, FACTOR, 8)
        except UserError as error:
            assert "\n" not in str(error)
            return
    assert inputs.image.shape[2:] == inputs.mask.shape[2:] == size
    assert inputs.image.abs().max() <= 1 and set(inputs.mask.unique().tolist()) <= {0.0, 1.0}
    assert inputs.reference.isfinite().all() and (inputs.mask == 0).any()


@given(sizes, st.data())
def test_a_mask_marks_what_is_white_in_it(size, data):
    mask = data.draw(masks_for(size))
    photo = Image.new("RGB", size)
    assume(mask.size == size and mask.mode in ("L", "RGB", "1"))
    try:
        found = Region(mask=mask).mask_in(photo)
    except UserError:
        assert np.asarray(mask.convert("L")).max() < 128
    else:
        np.testing.assert_array_equal(np.asarray(found) > 127, np.asarray(mask.convert("L")) > 127)


@given(picture_files(damage=True), st.data())
def test_a_damaged_mask_is_used_or_refused(file, data):
    photo = Image.new("RGB", data.draw(st.sampled_from([file.size, (20, 20)])))
    with tempfile.TemporaryDirectory() as folder:
        try:
            mask = opened(file, folder, "mask")
            found = Region(mask=mask).mask_in(photo)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert found.size == upright_photo(photo).size and np.asarray(found).max() > 127
