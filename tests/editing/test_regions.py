"""Regions and references without a drawing program."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import Blending, Placement
from ldm.editing.references import NEUTRAL, cut_out, fit_reference
from ldm.editing.regions import Region, box_mask, grow, parse_box, parse_point, polygon_mask
from ldm.images import ORIENTATION
from ldm.util import UserError

SIZE = (60, 40)
PHOTO = Image.new("RGB", SIZE, "orange")


def white(mask):
    return np.asarray(mask) > 127


def test_a_box_is_exactly_its_pixels():
    mask = white(parse_box("10,5,20,15").mask_in(PHOTO))
    wanted = np.zeros(SIZE[::-1], bool)
    wanted[5:15, 10:20] = True
    assert np.array_equal(mask, wanted)
    assert white(box_mask(SIZE, [-5, -5, 1000, 10])).sum() == 60 * 10
    for wrong in ("70,0,80,10", "20,5,10,15"):
        with pytest.raises(UserError, match="contains nothing of the photo, which is 60 x 40 pixels"):
            parse_box(wrong).mask_in(PHOTO)
    for wrong in ("1,2,3", "a,b,c,d", "1,2,3,nan", ""):
        with pytest.raises(UserError, match="x0,y0,x1,y1"):
            parse_box(wrong)


def test_a_polygon():
    mask = white(Region(polygon=tuple(parse_point(p) for p in ("0,0", "40,0", "0,40"))).mask_in(PHOTO))
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
    assert Region(box=(50, 0, 60, 10)).mask_in(Image.open(tmp_path / "photo.jpg")).size == (60, 40)


def test_the_transparent_part_is_painted():
    erased = PHOTO.copy()
    erased.putalpha(Image.fromarray(np.where(white(box_mask(SIZE, [5, 5, 25, 25])), 0, 255).astype(np.uint8)))
    assert np.array_equal(white(Region(alpha=True).mask_in(erased)), white(box_mask(SIZE, [5, 5, 25, 25])))
    for opaque in (PHOTO, PHOTO.convert("RGBA")):
        with pytest.raises(UserError, match="no transparent part"):
            Region(alpha=True).mask_in(opaque)


def test_growing_is_by_distance():
    """Against the definition, pixel by pixel."""
    mask = white(polygon_mask(SIZE, [(10, 10), (30, 12), (22, 30)]))
    points = np.argwhere(mask)
    y, x = np.mgrid[:40, :60]
    to_mask = np.sqrt(((np.stack([y, x], -1)[:, :, None] - points) ** 2).sum(-1)).min(-1)
    assert np.array_equal(white(grow(Image.fromarray(mask).convert("L"), 4.5)), to_mask <= 4.5)
    outside = np.argwhere(~mask)
    to_outside = np.sqrt(((np.stack([y, x], -1)[:, :, None] - outside) ** 2).sum(-1)).min(-1)
    assert np.array_equal(white(grow(Image.fromarray(mask).convert("L"), -3)), to_outside > 3)


def test_a_region_is_inverted_before_it_grows():
    box = Region(box=(10, 10, 30, 30))
    assert np.array_equal(white(box.mask_in(PHOTO, Placement(invert=True))), ~white(box_mask(SIZE, [10, 10, 30, 30])))
    assert (~white(box.mask_in(PHOTO, Placement(grow=2, invert=True)))).sum() == 16 * 16
    with pytest.raises(UserError, match="nothing left to paint at 60 x 40 pixels: change grow or invert"):
        box.mask_in(PHOTO, Placement(grow=-11))


def test_a_mask_too_thin_for_the_photo_is_an_error():
    mask = Image.new("L", (6000, 4000))
    mask.paste(255, (3000, 0, 3002, 4000))
    with pytest.raises(UserError, match="nothing left to paint at 60 x 40 pixels: make its region wider"):
        Region(mask=mask).mask_in(PHOTO)


def test_boxes_and_corners_may_be_numpys():
    assert Region(box=np.array([1, 2, 3, 4])) == Region(box=(1, 2, 3, 4))
    corners = np.array([[0, 0], [9, 0], [0, 9]])
    assert Region(polygon=corners).settings == {"polygon": [[0, 0], [9, 0], [0, 9]]}
    json.dumps(Region(polygon=corners).settings)


def test_a_mask_file_of_another_size(tmp_path):
    box_mask((30, 20), [5, 5, 10, 10]).save(tmp_path / "mask.png")
    mask = white(Region(mask=str(tmp_path / "mask.png")).mask_in(PHOTO))
    assert mask.shape == (40, 60) and mask[12:18, 12:18].all() and mask.sum() == pytest.approx(100, abs=8)


def test_references_lose_their_background():
    picture = Image.new("RGB", SIZE, "blue")
    picture.paste("red", (20, 10, 40, 30))
    mask = box_mask(SIZE, [20, 10, 40, 30])
    mask.paste(0, (20, 10, 30, 20))  # a corner that does not belong to the object
    out = np.asarray(fit_reference(cut_out(picture, mask)))
    assert out.shape == (20, 20, 3)
    assert (out[:10, :10] == NEUTRAL).all() and (out[10:] == (255, 0, 0)).all()
    with pytest.raises(UserError, match="fully transparent"):
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
        Placement(reference_fit="stretch")


@pytest.mark.parametrize(
    "region",
    [Region(mask="mask.png"), Region(box=(1, -2, 3, 4)), Region(polygon=((0, 0), (9, 0), (0, 9))), Region(alpha=True)],
    ids=["mask", "box", "polygon", "alpha"],
)
def test_a_region_survives_the_settings_of_a_picture(region):
    assert Region.from_settings(json.loads(json.dumps(region.settings))) == region


def test_a_region_is_exactly_one_of_its_kinds():
    for wrong in ({}, {"box": (1, 2, 3, 4), "alpha": True}, {"mask": PHOTO, "polygon": ((0, 0), (9, 0), (0, 9))}):
        with pytest.raises(UserError, match="exactly one"):
            Region(**wrong)
    for wrong in ({"box": (1, 2, 3)}, {"box": "1,23"}, {"box": (1, 2, 3, math.nan)}, {"polygon": ((0, 0, 0),)}):
        with pytest.raises(UserError, match=r"is not [24] numbers: give pixels"):
            Region(**wrong)
    for wrong in ({"box": (0.1, 0.2, 0.5, 0.6)}, {"polygon": ((0, 0), (0.5, 0), (0, 1))}):
        with pytest.raises(UserError, match="not fractions"):
            Region(**wrong)
    with pytest.raises(UserError, match="mask is of the type int: give a path, a PIL picture, an array"):
        Region(mask=5)
    for wrong in ({"polygon": 5}, {"polygon": "0,0 9,0 0,9"}):
        with pytest.raises(UserError, match="is not a"):
            Region(**wrong)
    for wrong in (None, [], {"file": "x"}, {"box": [1, 2, 3, 4], "alpha": True}):
        with pytest.raises(UserError, match="is unknown"):
            Region.from_settings(wrong)


@pytest.mark.parametrize("kind", [list, np.array, np.float32, torch.tensor])
def test_boxes_of_detectors_grow_to_whole_pixels(kind):
    assert Region(box=kind([10.75, 5.0, 20.25, 15.0])).settings == {"box": [10, 5, 21, 15]}
    assert Region(snap=kind([-0.5, 5.0, 20.0, 15.5])).snap == (-1, 5, 20, 16)
    assert Region(polygon=kind([[0.4, 2.0], [9.6, 0.0], [0.0, 8.9]])).polygon == ((0, 2), (10, 0), (0, 9))
    assert parse_box("10.75,5,20.25,15") == Region(box=(10, 5, 21, 15))


def test_a_photo_is_marked_with_a_reference_for_each_region_or_one_for_all():
    boxes = [Region(box=(0, 0, 10, 10)), Region(box=(20, 0, 30, 10))]
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    marked = MarkedPhoto.mark(PHOTO, boxes, [red, (red, blue)])
    assert marked.references == ((red,), (red, blue)) and [mask.size for mask in marked.masks] == [SIZE, SIZE]
    assert MarkedPhoto.mark(PHOTO, boxes, [(red, blue)]).references == ((red, blue), (red, blue))
    with pytest.raises(UserError, match="2 regions and 3 references"):
        MarkedPhoto.mark(PHOTO, boxes, [red, red, red])
    with pytest.raises(UserError, match=r"reference red\.png does not exist"):
        MarkedPhoto.mark(PHOTO, boxes, ["red.png", red])
    with pytest.raises(TypeError, match="reference is of the type int"):
        MarkedPhoto.mark(PHOTO, boxes, [7])
    with pytest.raises(TypeError, match="a tuple of references is empty"):
        MarkedPhoto.mark(PHOTO, boxes, [()])
    with pytest.raises(TypeError, match="are lists"):
        MarkedPhoto.mark(PHOTO, boxes, red)
    with pytest.raises(TypeError, match="Region"):
        MarkedPhoto.mark(PHOTO, [(0, 0, 10, 10)], [red])


def test_nothing_blends_into_what_was_erased():
    erased = PHOTO.copy()
    erased.putalpha(Image.new("L", SIZE))
    reference = Image.new("RGB", (8, 8))
    marked = MarkedPhoto.mark(erased, [Region(alpha=True)], [reference])
    assert marked.blending(Blending()) == Blending(feather=0.0)
    assert marked.blending(Blending(feather=3)) == Blending(feather=3)
    assert MarkedPhoto.mark(PHOTO, [Region(box=(0, 0, 9, 9))], [reference]).blending(Blending()) == Blending()
