"""Masks and references without a drawing program."""

import numpy as np
import pytest
from PIL import Image

from ldm.editing.references import NEUTRAL, cut_out, fit_reference
from ldm.editing.regions import box_mask, grown, mask_of, parse_box, parse_point, polygon_mask
from ldm.images import ORIENTATION
from ldm.util import UserError

SIZE = (60, 40)
PHOTO = Image.new("RGB", SIZE, "orange")


def white(mask):
    return np.asarray(mask) > 127


def test_a_box_is_exactly_its_pixels():
    mask = white(mask_of(parse_box("10,5,20,15"), PHOTO))
    wanted = np.zeros(SIZE[::-1], bool)
    wanted[5:15, 10:20] = True
    assert np.array_equal(mask, wanted)
    assert white(box_mask(SIZE, [-5, -5, 1000, 10])).sum() == 60 * 10
    for wrong in ("70,0,80,10", "20,5,10,15"):
        with pytest.raises(UserError, match="has nothing of the photo, 60 x 40 pixels"):
            mask_of(parse_box(wrong), PHOTO)
    for wrong in ("1,2,3", "a,b,c,d", "1,2,3,nan", ""):
        with pytest.raises(UserError, match="x0,y0,x1,y1"):
            parse_box(wrong)


def test_a_polygon():
    mask = white(mask_of({"polygon": [parse_point(p) for p in ("0,0", "40,0", "0,40")]}, PHOTO))
    y, x = np.mgrid[:40, :60]
    assert mask[x + y < 39].all() and not mask[x + y > 41].any()
    with pytest.raises(UserError, match="has 2 corners"):
        polygon_mask(SIZE, [(0, 0), (5, 5)])
    with pytest.raises(UserError, match="nothing of the photo"):
        polygon_mask(SIZE, [(100, 100), (200, 100), (100, 200)])


def test_boxes_count_in_the_photo_as_seen(tmp_path):
    stored = Image.new("RGB", (40, 60))
    exif = stored.getexif()
    exif[ORIENTATION] = 6
    stored.save(tmp_path / "photo.jpg", exif=exif)
    assert mask_of({"box": [50, 0, 60, 10]}, Image.open(tmp_path / "photo.jpg")).size == (60, 40)


def test_what_is_transparent_is_painted():
    erased = PHOTO.copy()
    erased.putalpha(Image.fromarray(np.where(white(box_mask(SIZE, [5, 5, 25, 25])), 0, 255).astype(np.uint8)))
    assert np.array_equal(white(mask_of({"alpha": True}, erased)), white(box_mask(SIZE, [5, 5, 25, 25])))
    for opaque in (PHOTO, PHOTO.convert("RGBA")):
        with pytest.raises(UserError, match="nowhere transparent"):
            mask_of({"alpha": True}, opaque)


def test_growing_is_by_distance():
    """Against the definition, pixel by pixel."""
    mask = white(polygon_mask(SIZE, [(10, 10), (30, 12), (22, 30)]))
    points = np.argwhere(mask)
    y, x = np.mgrid[:40, :60]
    to_mask = np.sqrt(((np.stack([y, x], -1)[:, :, None] - points) ** 2).sum(-1)).min(-1)
    assert np.array_equal(white(grown(Image.fromarray(mask).convert("L"), 4.5)), to_mask <= 4.5)
    outside = np.argwhere(~mask)
    to_outside = np.sqrt(((np.stack([y, x], -1)[:, :, None] - outside) ** 2).sum(-1)).min(-1)
    assert np.array_equal(white(grown(Image.fromarray(mask).convert("L"), -3)), to_outside > 3)


def test_inverted_before_grown():
    box = {"box": [10, 10, 30, 30]}
    assert np.array_equal(white(mask_of(box, PHOTO, invert=True)), ~white(box_mask(SIZE, [10, 10, 30, 30])))
    assert (~white(mask_of(box, PHOTO, grow=2, invert=True))).sum() == 16 * 16
    with pytest.raises(UserError, match="nothing left to paint"):
        mask_of(box, PHOTO, grow=-11)


def test_a_mask_file_of_another_size(tmp_path):
    box_mask((30, 20), [5, 5, 10, 10]).save(tmp_path / "mask.png")
    mask = white(mask_of({"mask": str(tmp_path / "mask.png")}, PHOTO))
    assert mask.shape == (40, 60) and mask[12:18, 12:18].all() and mask.sum() == pytest.approx(100, abs=8)


def test_references_lose_their_background():
    picture = Image.new("RGB", SIZE, "blue")
    picture.paste("red", (20, 10, 40, 30))
    mask = box_mask(SIZE, [20, 10, 40, 30])
    mask.paste(0, (20, 10, 30, 20))  # a corner that is not of the object
    out = np.asarray(fit_reference(cut_out(picture, mask)))
    assert out.shape == (20, 20, 3)
    assert (out[:10, :10] == NEUTRAL).all() and (out[10:] == (255, 0, 0)).all()
    with pytest.raises(UserError, match="transparent all over"):
        fit_reference(Image.new("RGBA", SIZE))


def test_references_become_square_as_asked():
    wide = Image.new("RGB", SIZE, "blue")
    wide.paste("red", (10, 0, 50, 40))
    assert fit_reference(wide).size == SIZE  # squashed later
    padded = np.asarray(fit_reference(wide, "pad"))
    assert (
        padded.shape == (60, 60, 3) and (padded[:10] == NEUTRAL).all() and (padded[10:50, 10:50] == (255, 0, 0)).all()
    )
    cropped = np.asarray(fit_reference(wide, "crop"))
    assert cropped.shape == (40, 40, 3) and (cropped == (255, 0, 0)).all()
    with pytest.raises(UserError, match="squash, pad, crop"):
        fit_reference(wide, "stretch")
