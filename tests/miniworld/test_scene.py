"""The small world: annotations describe what is drawn, and the scripts for real data read its files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.bench.cocoee import COCOImageDataset
from ldm.miniworld import scene as scene_module
from ldm.miniworld.captions import caption, colour_name
from ldm.miniworld.identity import HELD_OUT, MIN_CONTRAST, Identity, contrast, draw_identity
from ldm.miniworld.light import Light
from ldm.miniworld.patterns import PATTERNS, pattern_share
from ldm.miniworld.scene import scene
from ldm.miniworld.shapes import SHAPES, shape_map


@pytest.fixture(scope="module")
def two_worlds(tmp_path_factory):
    """Two worlds of 40, 8 and 8 scenes and 12 cases, which the script wrote with equal flags."""
    import subprocess
    import sys

    from tests.conftest import ROOT

    root = tmp_path_factory.mktemp("world")
    for name in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "scripts/make_miniworld.py", "--dataset_dir", str(root / name / "data"),
             "--bench", str(root / name / "bench"), "--train", "40", "--validation", "8", "--test", "8",
             "--pretraining", "12", "--cases", "12", "--real", "5", "--side", "96"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return root


def attributes(root, split):
    return [json.loads(line) for line in (root / f"annotations/{split}-objects.jsonl").read_text().splitlines()]


def test_a_scene_is_a_function_of_its_seed():
    first, objects = scene((1, 2))
    again, same = scene((1, 2))
    other, _ = scene((1, 3))
    assert np.array_equal(first, again) and objects == same and (first != other).any()
    assert first.shape == (120, 160, 3) and first.dtype == np.uint8


def test_identities_held_out_are_never_seen_in_training():
    assert len(HELD_OUT) == len(SHAPES) == 12 and {pattern for _, pattern in HELD_OUT} == set(PATTERNS)
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        drawn = [draw_identity(rng, held_out) for _ in range(400)]
        assert all(((each.shape, each.pattern) in HELD_OUT) == held_out for each in drawn)
        assert {each.shape for each in drawn} == set(SHAPES) and {each.pattern for each in drawn} == set(PATTERNS)
        for each in drawn:
            assert (each.pattern == "solid") == (each.colour == each.second)
            assert each.pattern == "solid" or contrast(each.colour, each.second) >= MIN_CONTRAST


def test_boxes_hold_what_is_seen_of_the_objects(monkeypatch):
    """Objects of pure colours on black ground in white light: the pixels of a colour span its object's box."""
    colours = iter([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)] * 100)

    def identity(rng):
        colour = next(colours)
        return Identity(SHAPES[rng.integers(12)], "solid", colour, colour)

    monkeypatch.setattr(
        scene_module, "draw_ground", lambda rng, size, light: np.zeros((size[1], size[0], 3), np.float32)
    )
    light = Light(np.array([0.0, 0.0, 1.0]), np.ones(3), 0.6, 0.4, 0.0)
    monkeypatch.setattr(scene_module, "draw_light", lambda rng: light)
    checked = 0
    for seed in range(60):
        pixels, objects = scene(seed, objects=(3, 3), draw=identity)
        for thing in objects:
            channel = int(np.argmax(thing.identity.colour))
            if [each.identity.colour for each in objects].count(thing.identity.colour) > 1:
                continue
            bright = pixels[..., channel] > 45  # in shadow too
            ys, xs = np.nonzero(bright)
            x0, y0, x1, y1 = thing.box
            found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert np.abs(np.subtract(found, thing.box)).max() <= 3  # pointed tips are thinner than a pixel
            assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 120 and 0.6 <= thing.seen <= 1
            checked += 1
    assert checked > 100


def test_the_share_that_is_seen():
    """It is 1 for an object that is alone in its scene."""
    seen = [thing.seen for seed in range(30) for thing in scene(seed, objects=(1, 1))[1]]
    assert seen == [1.0] * len(seen) and len(seen) >= 28
    assert any(thing.seen < 0.95 for seed in range(30) for thing in scene(seed, objects=(4, 4))[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_differ(shape):
    """No other shape overlaps it by more than nine tenths, in any of 36 rotations."""

    def turned(name, angle):
        return np.asarray(Image.fromarray(shape_map(name)[..., 0] > 0).rotate(angle))

    own = turned(shape, 0)
    assert 0.1 < own.mean() < 0.6
    for other in set(SHAPES) - {shape}:
        overlap = max(
            (own & mask).sum() / (own | mask).sum() for mask in (turned(other, angle) for angle in range(0, 360, 10))
        )
        assert overlap < 0.9, other


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mix_their_colours(pattern):
    y, x = np.mgrid[-0.8:0.8:100j, -0.8:0.8:100j]
    share = pattern_share(pattern, x, y, 0.01)
    assert share.min() >= 0 and share.max() <= 1
    assert share.mean() == 0 if pattern == "solid" else 0.3 < share.mean() < 0.7
    assert ((share > 0.01) & (share < 0.99)).mean() < 0.15  # edges are sharp


def test_captions():
    assert colour_name((0.84, 0.1, 0.12)) == "red"
    assert caption(Identity("star", "solid", (0.85, 0.1, 0.1), (0.85, 0.1, 0.1))) == "a solid red star"
    striped = Identity("ring", "stripes", (0.85, 0.1, 0.1), (0.95, 0.9, 0.2))
    assert caption(striped) == "a red and yellow striped ring"


@pytest.mark.integration
def test_the_same_flags_make_the_same_files(two_worlds):
    files = sorted(path.relative_to(two_worlds / "a") for path in (two_worlds / "a").rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(two_worlds / "b") for path in (two_worlds / "b").rglob("*") if path.is_file()
    )
    assert all((two_worlds / "a" / path).read_bytes() == (two_worlds / "b" / path).read_bytes() for path in files)
    assert len([path for path in files if path.suffix == ".jpg"]) == 68


def test_it_is_prepared_and_read_as_open_images_is(two_worlds, script):
    from ldm.data.index import BoxIndex
    from ldm.data.open_images import OpenImageDataset

    root = two_worlds / "a/data"
    code, _, err = script("read_bbox", "--dataset_dir", root, "--min_area", 0, "--max_area", 1)
    assert code == 0, err
    index = BoxIndex(root, "train")
    wanted = {}
    for thing in attributes(root, "train"):
        wanted.setdefault(thing["image"], []).append(thing["box"])
    assert len(index) == len(wanted) and len(wanted) >= 38
    for path, boxes in (index[i] for i in range(len(index))):
        known = np.array(wanted[path.relative_to(root).as_posix()])
        assert len(boxes) == len(known) and np.abs(np.sort(boxes, 0) - np.sort(known, 0)).max() <= 1
    dataset = OpenImageDataset("train", str(root), 0.5, 96)
    assert dataset[(0, 3)]["GT"].shape == (3, 96, 96)
    things = [thing for split in ("train", "validation", "test") for thing in attributes(root, split)]
    assert not any((thing["shape"], thing["pattern"]) in HELD_OUT for thing in things)
    for thing in attributes(root, "pretraining"):  # every sixth scene, for CLIP and the classifier of results
        shown = int(Path(thing["image"]).stem[1:], 16) % 6 == 0
        assert ((thing["shape"], thing["pattern"]) in HELD_OUT) == shown


@pytest.mark.integration
def test_the_benchmark_asks_for_what_training_never_showed(two_worlds):
    bench = COCOImageDataset(two_worlds / "a/bench")
    known = json.loads((two_worlds / "a/bench/attributes.json").read_text())
    assert bench.ids == list(known) and len(bench) == 12
    for i, name in enumerate(bench.ids):
        photo, mask, reference = bench.pictures(i)
        assert photo.size == mask.size == (96, 96) and min(reference.size) > 10
        share = (np.asarray(mask) == 255).mean()
        assert 0.02 < share < 0.9
        asked, replaced = known[name]["reference"], known[name]["replaced"]
        assert (asked["shape"], asked["pattern"]) in HELD_OUT
        assert (replaced["shape"], replaced["pattern"]) not in HELD_OUT
        scale = 96 / 144  # of a box that went into the square
        width, height = (replaced["box"][i + 2] - replaced["box"][i] for i in (0, 1))
        rows, columns = (np.flatnonzero(np.asarray(mask).any(axis)) for axis in (1, 0))
        assert len(columns) == pytest.approx(width * scale, abs=1.5) and len(rows) == pytest.approx(
            height * scale, abs=1.5
        )
    assert len(list((two_worlds / "a/bench/test2017_square").iterdir())) == 5


def test_what_a_user_can_get_wrong(two_worlds, script, tmp_path):
    words = ("make_miniworld", "--dataset_dir", tmp_path / "data", "--bench", tmp_path / "bench")
    code, _, err = script(*words, "--train", 0)
    assert code == 2 and "--train 0 is out of range" in err
    code, _, err = script("make_miniworld", "--dataset_dir", two_worlds / "a/data", "--bench", tmp_path / "bench")
    assert code == 2 and "already exists" in err and not (tmp_path / "bench").exists()
