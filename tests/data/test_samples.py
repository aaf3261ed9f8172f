"""Training samples: the golden pieces and distributions, and properties over random boxes."""

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.conventions import CLIP_MEAN, CLIP_STD, image_to_tensor
from ldm.data import masks
from ldm.data.open_images import OpenImageDataset
from ldm.data.reference import P_AFFINE, P_BLUR, P_FLIP, P_ROTATE, load_augmentation, random_affine
from ldm.data.sample import Plan, Recipe
from ldm.images import PictureFile, size_in_header
from ldm.util import UserError
from tests.conftest import GOLDEN, ROOT

augment_reference = load_augmentation(True)
PIECES = np.load(GOLDEN / "data.npz")
STATS = json.loads((GOLDEN / "data_stats.json").read_text())
GOLDEN_SET = GOLDEN / "data/dataset/open-images"


# ------------------------------------------------------------------------------------------ golden pieces


@pytest.fixture(params=PIECES["case_names"])
def case(request):
    """One golden case: `case("bbox")`, integers as tuples."""

    def get(key):
        array = PIECES[f"case/{request.param}/{key}"]
        return tuple(array.tolist()) if array.dtype == np.int64 and array.ndim == 1 else array

    return get


def plan_of(case) -> Plan:
    return Plan(case("bbox"), case("extended_bbox"), case("points") if case("arbitrary") else None, case("window"))


class Fixed:
    """A generator that returns given integers in order."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, low, high, endpoint):
        assert endpoint and low <= self.numbers[0] <= high
        return self.numbers.pop(0)


def test_golden_geometry(case):
    box, grown, size = case("bbox"), case("extended_bbox"), case("W_H")
    limits = masks.growth_limits(box, size)
    assert [(0, limit) for limit in limits] == [tuple(pair) for pair in case("ext_ranges").tolist()]
    moves = [abs(a - b) for a, b in zip(box, grown, strict=True)]
    assert masks.grow(box, size, Fixed(*moves)) == grown
    assert (masks.window_positions(grown, size) or (-1, -1)) == case("pos_range")
    assert masks.window(grown, size, Fixed(int(case("pos")), int(case("shrink")))) == case("window")


def test_golden_masks(case):
    box, grown, size = case("bbox"), case("extended_bbox"), case("W_H")
    if case("arbitrary"):
        arcs = masks.arcs(box, grown)
        np.testing.assert_array_equal(arcs, case("curve_grid"))
        points = np.concatenate([masks.distinct(arc) for arc in arcs])
        np.testing.assert_array_equal(points, case("points"))
        full = masks.polygon_mask(points, size)
    else:
        full = masks.rectangle_mask(grown, size)
    np.testing.assert_array_equal(full, case("full_mask"))
    x0, y0, x1, y1 = case("window")
    mask = plan_of(case).mask()
    np.testing.assert_array_equal(mask, full[y0:y1, x0:x1])
    resized = Recipe(image_size=32).resize(mask.astype(np.float32))
    np.testing.assert_allclose(resized, case("mask")[0], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in PIECES["case_names"] if f"case/{name}/image" in PIECES])
@pytest.mark.parametrize("exact", [True, False])
def test_golden_samples(name, exact, tmp_path):
    def get(key):
        array = PIECES[f"case/{name}/{key}"]
        return tuple(array.tolist()) if array.ndim == 1 else array

    Image.fromarray(get("image")).save(tmp_path / "a.png")
    recipe = Recipe(image_size=32, exact=exact)
    entry = recipe.render(PictureFile(tmp_path / "a.png"), plan_of(get), np.random.default_rng(0))
    tolerance = 1e-6 if exact else 1 / 127.5  # one grey level
    np.testing.assert_allclose(entry["GT"], get("GT"), atol=tolerance)
    np.testing.assert_allclose(entry["inpaint_mask"], get("mask"), atol=1e-6)
    np.testing.assert_allclose(entry["inpaint_image"], get("GT") * get("mask"), atol=tolerance)


def test_golden_reference_regions():
    given, expected = PIECES["refcrop_in_W_H_x1_y1_x2_y2"].tolist(), PIECES["refcrop_out_x1_y1_x2_y2"].tolist()
    assert [list(masks.reference_region(tuple(box), (w, h))) for w, h, *box in given] == expected


def coordinate_picture():
    """Red and green are x and y."""
    x, y = np.meshgrid(np.arange(224, dtype=np.uint8), np.arange(224, dtype=np.uint8))
    return np.stack([x, y, np.zeros_like(x)], axis=-1)


@pytest.mark.parametrize("i", range(3))
def test_golden_affine(i):
    shifts = PIECES["elastic_pts_to"][i] - PIECES["elastic_pts_from"][i]
    picture = random_affine(coordinate_picture(), shifts)[::8, ::8, :2]
    # one of the golden picture's steps, its elastic one, is left out: it does not move a pixel
    np.testing.assert_array_equal(picture, PIECES["elastic_out_on_coordinate_image_sub8"][i])


# -------------------------------------------------------------------------------------- golden distributions


def assert_distribution(ours, deciles, count):
    """Asserts that our draws come from the distribution whose deciles, of `count` draws, are given: at each quantile
    from 10% to 90%, the probability differs by at most 4.5 standard deviations of the sampling error."""
    ours = np.asarray(ours, dtype=np.float64).round(6)
    for p, quantile in zip(np.arange(0.1, 0.95, 0.1), deciles[1:-1], strict=True):
        error = 4.5 * np.sqrt(p * (1 - p) * (1 / count + 1 / len(ours)))
        assert (ours < quantile - 1e-6).mean() - error <= p <= (ours <= quantile + 1e-6).mean() + error, (p, quantile)


@pytest.mark.parametrize("key", [key for key in STATS["samples"] if "/" in key])
def test_golden_distributions(key):
    name, branch = key.split("/")
    expected = STATS["samples"][key]
    dataset = OpenImageDataset(
        "test", GOLDEN_SET, float(branch == "arbitrary"), STATS["environment"]["image_size"], exact=True
    )
    place = next(i for i in range(len(dataset)) if dataset.index.path(i).stem == name)
    seen = {key: [] for key in expected if key.endswith("_deciles")}
    means = []
    for epoch in range(500):
        sample = dataset.sample((epoch, place))
        plan, (width, height) = sample.plan, sample.picture.size
        assert (width, height) == tuple(expected["image_size_wh"]) and plan.box == tuple(expected["bbox"])
        if plan.points is None:
            full = masks.rectangle_mask(plan.grown, (width, height))
        else:
            full = masks.polygon_mask(plan.points, (width, height))
        hole, (x0, y0, x1, y1), grown = full == 0, plan.box, plan.grown
        mask, reference = sample.entry["inpaint_mask"], sample.entry["ref_imgs"]
        black = (reference * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)).amax(
            0
        ) < 0.02
        outside = hole.copy()
        outside[grown[1] : grown[3], grown[0] : grown[2]] = False
        for name, value in {
            "hole_fraction_full": hole.mean(),
            "hole_fraction_output": (mask < 0.5).float().mean().item(),
            "bbox_hole_fraction_full": hole[y0:y1, x0:x1].mean(),
            "hole_outside_extended_bbox_fraction": outside.sum() / hole.sum(),
            "crop_width": plan.window[2] - plan.window[0],
            "crop_height": plan.window[3] - plan.window[1],
            "crop_x0": plan.window[0],
            "crop_y0": plan.window[1],
            "extension_left": x0 - grown[0],
            "extension_top": y0 - grown[1],
            "extension_right": grown[2] - x1,
            "extension_bottom": grown[3] - y1,
            "polygon_points": 0 if plan.points is None else len(plan.points),
            "mask_soft_pixel_fraction": ((mask > 0) & (mask < 1)).float().mean().item(),
            "ref_near_black_fraction": black.float().mean().item(),
        }.items():
            seen[f"{name}_deciles"].append(value)
        means.append(reference.mean((1, 2)).numpy())
        assert {k: list(v.shape) for k, v in sample.entry.items()} == expected["output_shapes"]
        assert all(v.dtype == torch.float32 for v in sample.entry.values())
    for name, values in seen.items():
        assert_distribution(values, expected[name], expected["n"])
    error = 4.5 * np.array(expected["ref_mean_of_sample_std"]) * np.sqrt(1 / 500 + 1 / expected["n"])
    assert (np.abs(np.mean(means, 0) - expected["ref_mean_per_channel"]) < error + 1e-3).all()
    np.testing.assert_allclose(np.std(means, 0), expected["ref_mean_of_sample_std"], rtol=0.25)


def test_golden_reference_augmentation():
    """The distance by which the middle of the picture moves, and the share of pictures where it does not move."""
    expected = STATS["reference_augmentation"]
    picture, moved, flips = coordinate_picture(), [], 0
    middle = slice(56, 168)
    source = picture[middle, middle, :2].astype(np.float64)
    for seed in range(2000):
        seen = augment_reference(picture, np.random.default_rng(seed))[middle, middle, :2].astype(np.float64)
        if seen[:, -1, 0].mean() < seen[:, 0, 0].mean():
            flips += 1
            seen[..., 0] = 223 - seen[..., 0]
        moved.append(np.linalg.norm(seen - source, axis=-1).mean())
    for ours, theirs in (
        (flips / 2000, expected["flip_rate"]),
        (np.mean(np.array(moved) < 0.5), expected["identity_rate_up_to_flip"]),
    ):
        assert abs(ours - theirs) < 4.5 * np.sqrt(0.25 * 2 / 2000)
    assert_distribution(moved, expected["central_displacement_px_deciles"], expected["n"])


def test_share_of_blobs():
    recipe = Recipe(arbitrary_mask_percent=0.5)
    blobs = [recipe.plan((20, 20, 60, 60), (100, 80), np.random.default_rng(i)).points is not None for i in range(2000)]
    assert abs(np.mean(blobs) - 0.5) < 4.5 * np.sqrt(0.25 / 2000)


# --------------------------------------------------------------------------------------------- properties


@st.composite
def boxes_in_pictures(draw):
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))), (width, height)


def contains(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


@settings(max_examples=300, deadline=None)
@given(boxes_in_pictures(), st.integers(0, 2**32))
def test_properties_of_the_geometry(box_and_size, seed):
    box, size = box_and_size
    whole = (0, 0, *size)
    plan = Recipe().plan(box, size, np.random.default_rng(seed))
    window = plan.window
    assert contains(plan.grown, box) and contains(whole, plan.grown) and contains(whole, window)
    assert contains(masks.reference_region(box, size), box)
    assert contains(window, plan.grown)
    assert window == whole or window[2] - window[0] == window[3] - window[1]
    long, short = max(size), min(size)
    sides = (plan.grown[2] - plan.grown[0], plan.grown[3] - plan.grown[1])
    if window == whole and long != short:  # only where there is at most one square around the grown box
        start, end = (plan.grown[0], plan.grown[2]) if size[0] == long else (plan.grown[1], plan.grown[3])
        assert max(sides) >= short or end - short >= start or start == 0 or end == long


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 90), st.integers(4, 90), st.data())
def test_properties_of_samples(width, height, data):
    x0, y0 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    box = (x0, y0, data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    recipe = Recipe(
        data.draw(st.sampled_from([0.0, 1.0])), image_size=data.draw(st.integers(1, 70)), exact=data.draw(st.booleans())
    )
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = PictureFile("made up", png(pixels))
    plan = recipe.plan(box, picture.size, rng)
    entry = recipe.render(picture, plan, rng)
    gt, mask = entry["GT"], entry["inpaint_mask"]
    assert gt.min() >= -1 and gt.max() <= 1 and mask.min() >= 0 and mask.max() <= 1
    assert torch.equal(entry["inpaint_image"], gt * mask) and torch.isfinite(entry["ref_imgs"]).all()
    left, top = plan.window[:2]
    if plan.points is None:  # the rectangle covers the box, all of it
        assert not plan.mask()[box[1] - top : box[3] - top, box[0] - left : box[2] - left].any()
        assert (plan.mask() == 0).sum() == np.prod(np.subtract(plan.grown[2:], plan.grown[:2]))


def png(pixels) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


@settings(max_examples=50, deadline=None)
@given(st.integers(600, 1500), st.integers(600, 1500), st.integers(0, 1000))
def test_reduced_decoding_loses_nothing(width, height, seed):
    """Window and reference keep at least as many pixels as they are resized to, or all of them."""
    rng = np.random.default_rng(seed)
    x0, y0 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    box = (x0, y0, int(rng.integers(x0 + 50, width)), int(rng.integers(y0 + 50, height)))
    recipe = Recipe(image_size=128)
    plan, region = recipe.plan(box, (width, height), rng), masks.reference_region(box, (width, height))
    reduction = recipe.reduction(plan.window, region)
    for (x0, y0, x1, y1), needed in ((plan.window, 128), (region, 224)):
        assert reduction == 1 or min(x1 - x0, y1 - y0) / reduction >= needed


# ------------------------------------------------------------------------------------- pictures and settings


def test_the_reference_is_blurred_as_often_as_it_should():
    """Without a warp there are eight outcomes: flipped or not, and not blurred or blurred over 3, 5 or 7 pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    outcomes = {}
    for side in (1, 3, 5, 7):
        for flipped in (picture, picture[:, ::-1]):
            outcomes[cv2.blur(np.ascontiguousarray(flipped), (side, side)).tobytes()] = side
    seen = [outcomes.get(augment_reference(picture, np.random.default_rng(i)).tobytes(), 0) for i in range(2000)]
    unwarped = (1 - P_ROTATE) * (1 - P_AFFINE)
    for side, p in ((1, (1 - P_BLUR) * unwarped), *((side, P_BLUR / 3 * unwarped) for side in (3, 5, 7))):
        assert abs(np.mean(np.array(seen) == side) - p) < 4.5 * np.sqrt(p * (1 - p) / 2000), side
    assert tuple(step["p"] for step in STATS["reference_augmentation"]["pipeline"][1:]) == (
        P_FLIP,
        P_ROTATE,
        P_BLUR,
        P_AFFINE,
    )


def test_a_large_photo_is_decoded_small(tmp_path):
    """It is decoded at a quarter of its size, and the sample is nearer to a smoothly resized one."""
    photo = Image.open(ROOT / "examples/image/example_1.jpg").convert("RGB").resize((1600, 1200))
    photo.save(tmp_path / "a.jpg", quality=95)
    boxes = np.array([[300, 100, 1300, 1100]])
    for exif in (None, 3, 6, 8):
        if exif:
            tags = photo.getexif()
            tags[0x0112] = exif
            photo.save(tmp_path / "a.jpg", quality=95, exif=tags)
        picture = PictureFile(tmp_path / "a.jpg")
        assert picture.size == ((1200, 1600) if exif in (6, 8) else (1600, 1200))
        fast, exact = (
            Recipe(image_size=128, reference_augmentation=False, exact=exact).sample(
                picture, boxes, np.random.default_rng(0)
            )
            for exact in (False, True)
        )
        assert Recipe(image_size=128).reduction(fast.plan.window, fast.plan.box) == 4
        window = Image.fromarray(picture.pixels()).crop(fast.plan.window)
        smooth = image_to_tensor(window.resize((128, 128), Image.Resampling.BILINEAR))
        errors = {name: (made.entry["GT"] - smooth).abs().mean() for name, made in (("fast", fast), ("exact", exact))}
        assert errors["fast"] < 0.8 * errors["exact"]  # exact resizing skips pixels
        assert (fast.entry["inpaint_mask"] - exact.entry["inpaint_mask"]).abs().mean() < 0.01


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_any_kind_of_picture_is_upright_and_its_damage_is_seen(kind, orientation, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
    tags = picture.getexif()
    tags[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    picture.save(path, **({} if kind == "bmp" else {"exif": tags}), **({"lossless": True} if kind == "webp" else {}))
    turned = orientation == 6 and kind != "bmp"
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270) if turned else picture)
    opened = PictureFile(path)
    assert opened.size == size_in_header(path) == expected.shape[1::-1]
    np.testing.assert_array_equal(opened.pixels(), expected)
    data = bytearray(path.read_bytes())
    with pytest.raises(UserError):
        PictureFile(path, bytes(data[: len(data) * 2 // 3])).pixels()


def test_an_orientation_that_is_in_xmp_alone(tmp_path):
    packet = b"http://ns.adobe.com/xap/1.0/\0" + (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    Image.new("RGB", (100, 60)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    segment = b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    picture = PictureFile(tmp_path / "a.jpg")
    assert size_in_header(tmp_path / "a.jpg") == picture.size == picture.pixels().shape[1::-1]


@pytest.mark.parametrize(
    "params", [{"arbitrary_mask_percent": 50}, {"image_size": 0}, {"arbitrary_mask_percent": -0.1}]
)
def test_a_recipe_that_cannot_be(params):
    with pytest.raises(UserError, match=r"use a share|use at least"):
        Recipe(**params)
