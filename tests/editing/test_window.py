"""Windows around masks, and what of the photo is left around them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ldm.editing.background import blend, opacity
from ldm.editing.options import Blending, Placement
from ldm.editing.window import MARGIN, MASK_SHARE, PlacedWindow, window_around
from ldm.util import UserError

RNG = np.random.default_rng(0)


def box_mask(size, box):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(8, 300), st.integers(8, 300)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.sampled_from([None, 1, 1.5, 4, 100, "photo"]),
    st.sampled_from([1.0, 1.5, 0.4]),
)
def test_a_window_holds_the_mask_and_never_leaves_the_photo(size, corners, context, aspect):
    (width, height), (a, b, c, d) = size, corners
    x0, y0 = int(a * (width - 1)), int(b * (height - 1))
    box = x0, y0, x0 + 1 + int(c * (width - 1 - x0)), y0 + 1 + int(d * (height - 1 - y0))
    left, top, right, bottom = window_around(box_mask(size, box), 64, context, aspect)
    assert 0 <= left <= box[0] and box[2] <= right <= width
    assert 0 <= top <= box[1] and box[3] <= bottom <= height
    if right - left < width and bottom - top < height:
        assert abs((right - left) / aspect - (bottom - top)) <= 1 / aspect + 1


def test_the_window_is_a_square_that_the_mask_fills_by_a_fifth():
    left, top, right, bottom = window_around(box_mask((4000, 3000), (2000, 1400, 2300, 1700)), 512)
    assert right - left == bottom - top == round(300 / MASK_SHARE**0.5)
    assert (left + right) / 2 == pytest.approx(2150, abs=1) and (top + bottom) / 2 == pytest.approx(1550, abs=1)
    # at the border it is shifted, not cut
    assert window_around(box_mask((4000, 3000), (3700, 0, 4000, 300)), 512) == (4000 - 671, 0, 4000, 671)
    # a tiny mask gets a window of the least size, a long one a window of more than its length
    assert window_around(box_mask((4000, 3000), (2000, 1500, 2002, 1502)), 512) == (1937, 1437, 2065, 1565)
    left, top, right, bottom = window_around(box_mask((4000, 3000), (1000, 1500, 2000, 1510)), 512)
    assert right - left == bottom - top == MARGIN * 1000


def test_the_window_is_not_a_square_if_the_photo_is_too_short():
    assert window_around(box_mask((600, 400), (50, 150, 550, 250)), 128) == (0, 0, 600, 400)
    assert window_around(box_mask((2000, 400), (700, 0, 1200, 400)), 128)[1::2] == (0, 400)
    # as long as a square has room for the mask's box, it is one
    left, top, right, bottom = window_around(box_mask((600, 400), (100, 50, 400, 350)), 128)
    assert (right - left, bottom - top) == (400, 400)


def test_context_is_the_windows_length_in_lengths_of_the_box():
    mask = box_mask((1000, 1000), (400, 450, 500, 500))
    for context, side in ((1, 100), (2.5, 250), (50, 1000), ("photo", 1000)):
        left, top, right, bottom = window_around(mask, 512, context)
        assert (right - left, bottom - top) == (side, side)
    for wrong in (0.9, float("nan"), float("inf"), 1e308, "all", -1):
        with pytest.raises(UserError, match="context"):
            Placement(context=wrong)


def edited(background, feather=None, shape="ellipse", where=(60, 40, 150, 120)):
    """-> photo, result, mask as arrays: noise painted over noise."""
    photo, painted = (Image.fromarray(RNG.integers(0, 256, (170, 220, 3), np.uint8)) for _ in range(2))
    mask = Image.new("L", photo.size)
    getattr(ImageDraw.Draw(mask), shape)(where, fill=255)
    place = PlacedWindow.around(photo, mask, 32)
    left, top, right, bottom = place.window
    result = place.paste(painted.crop((0, 0, right - left, bottom - top)), Blending(background, feather))
    return np.asarray(photo), np.asarray(result), np.asarray(mask) > 127, place.window


@pytest.mark.parametrize("where", [(60, 40, 150, 120), (0, 0, 90, 80), (180, 100, 219, 169)], ids=["in", "top", "end"])
@pytest.mark.parametrize("background", ["exact", "poisson"])
def test_outside_the_mask_the_bytes_are_the_photos(background, where):
    photo, result, mask, _ = edited(background, where=where)
    assert np.array_equal(result[~mask], photo[~mask])
    assert (result[mask] != photo[mask]).any(axis=-1).mean() > 0.95


def test_every_background_keeps_what_it_promises():
    photo, result, mask, window = edited("none")
    inside = np.zeros_like(mask)
    inside[window[1] : window[3], window[0] : window[2]] = True
    assert np.array_equal(result[~inside], photo[~inside])
    assert (result[inside] != photo[inside]).any(axis=-1).mean() > 0.99
    # feather: beyond 5 pixels of the mask nothing has changed, within them something has
    photo, result, mask, _ = edited("feather", 5)
    changed = (result != photo).any(axis=-1)
    ys, xs = np.nonzero(mask)
    distance = np.full(mask.shape, np.inf)
    for y, x in zip(ys, xs, strict=True):
        rows, columns = slice(max(0, y - 8), y + 9), slice(max(0, x - 8), x + 9)
        near = np.hypot(*np.ogrid[max(0, y - 8) - y : min(y + 9, 170) - y, max(0, x - 8) - x : min(x + 9, 220) - x])
        distance[rows, columns] = np.minimum(distance[rows, columns], near)
    assert not changed[distance > 6].any()
    assert changed[(distance > 0) & (distance < 4)].mean() > 0.9


def test_the_band_rises_linearly_on_its_side_of_the_edge():
    mask = np.zeros((40, 100), bool)
    mask[:, 50:] = True  # up to the picture's border, which is not an edge
    exact = opacity(mask, "exact", 4)
    np.testing.assert_allclose(exact[20, 48:56], [0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1], atol=1e-6)
    assert (exact[:, -1] == 1).all() and (exact[0] == exact[20]).all()
    feather = opacity(mask, "feather", 4)
    np.testing.assert_allclose(feather[20, 45:55], [0, *(np.arange(1, 16, 2) / 16), 1], atol=1e-6)
    assert set(np.unique(opacity(mask, "exact", 0))) == set(np.unique(opacity(mask, "feather", 0))) == {0, 1}
    thin = np.zeros((40, 100), bool)
    thin[:, 50:52] = True
    assert opacity(thin, "exact", 30).max() > 0.6  # a region narrower than its band is still painted
    assert (opacity(np.ones((4, 4), bool), "exact", 3) == 1).all()


def test_a_mask_that_fills_the_window_has_its_edge_there_but_not_at_the_photos():
    photo, white = Image.new("RGB", (100, 60)), Image.new("RGB", (1, 1), "white")
    place = PlacedWindow.around(photo, box_mask((100, 60), (0, 10, 40, 50)), 32, context=1)
    assert place.window == (0, 10, 40, 50)
    row = np.asarray(place.paste(white, Blending(feather=3)))[30, :, 0]
    assert row[0] == 255 and row[36] == 255 and row[37:42].tolist() == [191, 128, 64, 0, 0]


def test_feather_fades_out_where_the_window_ends():
    photo, white = Image.new("RGB", (100, 60)), Image.new("RGB", (1, 1), "white")
    place = PlacedWindow.around(photo, box_mask((100, 60), (0, 10, 40, 50)), 32, context=1)
    row = np.asarray(place.paste(white, Blending("feather", 3)))[30, :, 0].astype(int)
    assert (row[:33] == 255).all() and (row[40:] == 0).all()  # not at the photo's border
    assert np.abs(np.diff(row)).max() <= 44 and (np.diff(row) <= 0).all()


def test_poisson_fits_the_colours():
    """Painted is the photo, but 60 levels brighter: with its gradients and the photo's border, it is the photo."""
    ramp = np.stack([np.tile(np.linspace(40, 120, 90), (70, 1))] * 3, axis=-1).round().astype(np.uint8)
    photo, brighter = Image.fromarray(ramp), Image.fromarray(ramp + 60)
    circle = Image.new("L", photo.size)
    ImageDraw.Draw(circle).ellipse((20, 15, 60, 50), fill=255)
    for mask in (box_mask((90, 70), (20, 15, 60, 50)), circle, box_mask((90, 70), (0, 20, 30, 50))):
        out = np.asarray(blend(photo, brighter, mask, Blending("poisson", 0))).astype(int)
        assert np.abs(out - ramp).max() <= 3
    out = blend(photo, brighter, Image.new("L", photo.size, 255), Blending("poisson"))  # no edge, so nothing to fit to
    assert np.array_equal(np.asarray(out), ramp + 60)


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (2, 2), (3, 3), (1, 40), (40, 3), (40, 30)])
@pytest.mark.parametrize("background", ["exact", "feather", "poisson", "none"])
def test_regions_of_a_few_pixels(size, background):
    """Painted is the photo, but 60 levels brighter: poisson gives the photo, where the region has an edge."""
    width, height = size
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width) * 2)[..., None].repeat(3, 2).astype(np.uint8)
    photo, brighter = Image.fromarray(ramp), Image.fromarray(ramp + 60)
    corners = {(x, y) for x in (0, width // 2, width - 1) for y in (0, height // 2, height - 1)}
    for (x, y), w, h in itertools.product(corners, (1, 2, 3, width), (1, 2, 3, height)):
        mask = box_mask(size, (x, y, x + w, y + h))
        out = np.asarray(blend(photo, brighter, mask, Blending(background, 0))).astype(int)
        paint = np.asarray(mask) > 0
        assert out.shape == ramp.shape
        if background != "none":
            assert np.array_equal(out[~paint], ramp[~paint])
        if background == "poisson" and not paint.all():
            assert np.abs(out - ramp).max() <= 6
        if background == "exact":
            assert (out[paint] > ramp[paint].astype(int)).any()


def test_a_colour_profile_stays_unless_it_is_of_other_colours():
    photo, mask = Image.new("RGB", (60, 40)), box_mask((60, 40), (10, 10, 30, 30))
    for space, kept in ((b"RGB ", True), (b"CMYK", False)):
        photo.info["icc_profile"] = bytes(16) + space + bytes(100)
        place = PlacedWindow.around(photo, mask, 32)
        assert ("icc_profile" in place.paste(place.picture).info) == kept
