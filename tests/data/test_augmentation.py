"""The reference's augmentation: the published recipe to the bit, pipelines from files, and effects of the import."""

import json
import os
import pickle
import random
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm.data import augmentation
from ldm.data.augmentation import (
    A,
    DrawThenApply,
    PublishedBlur,
    PublishedElastic,
    PublishedRotate,
    SharedRandom,
    load_pipeline,
    published_pipeline,
)
from ldm.data.open_images import OpenImageDataset
from ldm.data.reference import load_augmentation
from ldm.data.sample import Recipe
from ldm.util import UserError
from tests.conftest import ROOT

UNMIRRORED = ROOT / "configs/augmentation/unmirrored.yaml"
PUBLISHED = ROOT / "configs/augmentation/published.yaml"


@pytest.fixture(scope="module")
def picture():
    """Noise over a gradient: a shift of a fraction of a pixel changes it."""
    ramp = np.linspace(0, 127, 224)[:, None, None] + np.linspace(0, 63, 224)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 64, (224, 224, 3))
    return (ramp + noise).astype(np.uint8)


def published(picture, rng):
    """The recipe of Yang et al. 2022, written again with OpenCV alone."""
    flip, rotate, blur, elastic = rng.random(4) < (0.5, 0.5, 0.3, 0.3)
    angle, side, shifts = rng.uniform(-20, 20), int(rng.choice((3, 5, 7))), rng.uniform(-50, 50, (3, 2))
    mirrored = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REFLECT_101}
    if flip:
        picture = cv2.flip(picture, 1)
    if rotate:
        picture = cv2.warpAffine(picture, cv2.getRotationMatrix2D((112, 112), angle, 1), (224, 224), **mirrored)
    if blur:
        picture = cv2.blur(picture, (side, side))
    if elastic:
        anchors = np.float32([(186, 186), (186, 38), (38, 38)])
        matrix = cv2.getAffineTransform(anchors, anchors + shifts.astype(np.float32))
        picture = cv2.warpAffine(picture, matrix, (224, 224), **mirrored)
    return picture


@pytest.mark.parametrize("setting", [True, str(PUBLISHED)], ids=["default", "file"])
def test_the_published_recipe_to_the_bit(picture, setting):
    """Pictures and draws are equal, so that training losses stay what they were."""
    augment = load_augmentation(setting)
    for seed in range(400):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        np.testing.assert_array_equal(augment(picture, ours), published(picture, theirs))
        assert ours.bit_generator.state == theirs.bit_generator.state


def test_the_published_file_describes_the_default():
    assert A.to_dict(load_pipeline(PUBLISHED)) == A.to_dict(published_pipeline())


def test_the_unmirrored_recipe_is_the_published_one_without_mirroring():
    published, unmirrored = (A.to_dict(load_pipeline(path))["transform"] for path in (PUBLISHED, UNMIRRORED))
    mirror, *rest = published["transforms"]
    assert mirror["__class_fullname__"] == "HorizontalFlip" and rest == unmirrored["transforms"]


def test_what_is_drawn_does_not_depend_on_what_is_applied(picture):
    """A rotation by 0 degrees draws its angle and changes nothing; whether it is applied must not affect later
    draws."""
    outcomes = []
    for p in (0, 1):
        rng = np.random.default_rng(5)
        pipeline = DrawThenApply([PublishedRotate(limit=0, p=p), PublishedBlur(p=1), PublishedElastic(p=1)])
        outcomes.append((augmentation.Augmentation(pipeline)(picture, rng), rng.bit_generator.state))
    (without, state), (with_rotation, other_state) = outcomes
    np.testing.assert_array_equal(without, with_rotation)
    assert state == other_state and not np.array_equal(without, picture)


def test_draw_then_apply_with_a_probability(picture):
    flip = augmentation.Augmentation(DrawThenApply([A.HorizontalFlip(p=1)], p=0.3))
    flipped = [not np.array_equal(flip(picture, np.random.default_rng(i)), picture) for i in range(500)]
    assert abs(np.mean(flipped) - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / 500)
    with pytest.raises(ValueError, match="single transforms"):
        DrawThenApply([A.OneOf([A.HorizontalFlip()])])


def test_shared_random_is_a_random():
    ours = SharedRandom(np.random.default_rng(0))
    assert 0.45 < np.mean([ours.random() for _ in range(1000)]) < 0.55
    assert {ours.randint(1, 6) for _ in range(200)} == {1, 2, 3, 4, 5, 6}
    assert sorted(ours.sample(range(20), 20)) == list(range(20))
    assert ours.getrandbits(0) == 0 and max(ours.getrandbits(11) for _ in range(2000)).bit_length() == 11
    assert isinstance(ours, random.Random) and abs(np.mean([ours.gauss(3, 1) for _ in range(1000)]) - 3) < 0.2
    assert len({SharedRandom(np.random.default_rng(5)).gauss(0, 1) for _ in range(5)}) == 1
    before = np.random.default_rng(3)
    copied = pickle.loads(pickle.dumps(SharedRandom(before)))
    assert copied.random() == before.random()


# ------------------------------------------------------------------------------------------ pipelines from files


def everyday_pipeline():
    """A pipeline such as a user writes: nested, with draws from Python's generator and from NumPy's."""
    return A.Compose(
        [
            A.RandomResizedCrop(size=(224, 224), scale=(0.6, 1.0), p=1.0),
            A.OneOf([A.GaussianBlur(p=1.0), A.MotionBlur(p=1.0)], p=0.5),
            A.ColorJitter(p=0.8),
            A.GaussNoise(p=0.5),
            DrawThenApply([A.Rotate(limit=30, p=0.5), PublishedElastic(shift=10, p=0.5)]),
        ]
    )


@pytest.fixture
def photos(tmp_path):
    """Six pictures with a box each."""
    for folder in ("images", "bbox"):
        (tmp_path / folder / "train_0").mkdir(parents=True)
    for i, source in enumerate(sorted((ROOT / "examples/image").glob("*.jpg"))[:3] * 2):
        Image.open(source).convert("RGB").resize((120, 100)).save(tmp_path / f"images/train_0/{i}.jpg")
        (tmp_path / f"bbox/train_0/{i}.txt").write_text("10 20 90 80\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_samples_of_any_pipeline_are_a_function_of_seed_epoch_and_index(photos, kind):
    path = photos / f"pipeline.{kind}"
    A.save(everyday_pipeline(), path, data_format=kind)
    dataset = OpenImageDataset("train", photos, image_size=32, reference_augmentation=str(path))
    keys = [(epoch, i) for epoch in range(2) for i in range(6)]
    alone = [dataset[key]["ref_imgs"] for key in reversed(keys)][::-1]
    path.unlink()  # what has been loaded goes to the workers
    for workers in (0, 2):
        loader = DataLoader(dataset, sampler=keys, num_workers=workers, batch_size=2)
        loaded = torch.cat([batch["ref_imgs"] for batch in loader])
        assert all(torch.equal(a, b) for a, b in zip(alone, loaded, strict=True))
    sent = pickle.loads(pickle.dumps(dataset.recipe))
    assert torch.equal(alone[3], OpenImageDataset.__getitem__(_with_recipe(dataset, sent), keys[3])["ref_imgs"])
    plain = OpenImageDataset("train", photos, image_size=32)
    assert not any(torch.equal(plain[key]["ref_imgs"], a) for key, a in zip(keys, alone, strict=True))


def _with_recipe(dataset, recipe):
    dataset.recipe = recipe
    return dataset


def test_a_single_transform_is_a_pipeline_too(tmp_path, picture):
    A.save(A.HorizontalFlip(p=1.0), tmp_path / "flip.yaml", data_format="yaml")
    flip = load_augmentation(str(tmp_path / "flip.yaml"))
    np.testing.assert_array_equal(flip(picture, np.random.default_rng(0)), picture[:, ::-1])


def test_files_that_albumentations_wrote_are_accepted(tmp_path, recwarn):
    """The files of these two transforms hold arguments of the base class that the transforms do not take."""
    A.save(A.Compose([A.SafeRotate(p=1.0), A.RGBShift(p=0.5)]), tmp_path / "a.json")
    assert load_augmentation(str(tmp_path / "a.json"))
    assert not [w for w in recwarn if "valid" in str(w.message)]


def entry(name, **params):
    return json.dumps({"transform": {"__class_fullname__": name, "p": 1.0, **params}})


def lambda_transform():
    return A.to_dict(A.Compose([A.Lambda(image=np.negative, name="negative")]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", None, r"cannot be read \(No such file.*existing file"),
        ("a.yaml", "transform: [", r"is not YAML \(.*albumentations.save"),
        ("a.yaml", b"\xff\xfe\x00\x00\xd8", r"is not YAML \("),
        ("a.json", "transform: 3", r"is not JSON \(.*albumentations.save"),
        ("a.yaml", "", "no entry 'transform'"),
        ("a.yaml", "[1, 2]", "no entry 'transform'"),
        ("a.yaml", "transform: Compose", "no entry 'transform'"),
        ("a.yaml", "transform: {p: 1}", "names no transform"),
        ("a.yaml", entry("Embellish"), "albumentations has no transform 'Embellish'"),
        ("a.yaml", entry("Compose", transforms=["Rotate"]), "an entry names no transform"),
        ("a.yaml", entry("Rotate", limits=3), r"Rotate has no parameter limits\): correct it"),
        ("a.yaml", entry("Compose", transforms=[], strength=3), "strength"),
        ("a.yaml", '{"transform": {"__class_fullname__": "HorizontalFlip"}}', "HorizontalFlip has no probability p"),
        ("a.yaml", entry("Rotate", limit="many"), "limit"),
        ("a.yaml", entry("ldm.data.augmentation.PublishedRotate", limit=200), r"limit: .* less than or equal to 180"),
        ("a.yaml", entry("ldm.data.augmentation.PublishedBlur", sizes=[3, 0]), r"sizes\.1: .* greater than 0"),
        ("a.yaml", entry("ldm.data.augmentation.PublishedElastic", shift=-1), r"shift: .* greater than or equal to 0"),
        ("a.yaml", entry("BboxParams", format="coco"), "BboxParams"),
        ("a.yaml", entry("Resize", height=100, width=224), r"\(224, 224, 3\) uint8 into \(100, 224, 3\) uint8"),
        ("a.yaml", entry("RandomCrop", height=100, width=100) .replace("1.0", "0.01"), r"into \(100, 100, 3\)"),
        ("a.yaml", entry("ToGray", num_output_channels=1), r"into \(224, 224\) uint8"),
        ("a.yaml", entry("ToFloat"), r"uint8 into \(224, 224, 3\) float32"),
        ("a.yaml", entry("ToTensorV2"), r"into \(3, 224, 224\) torch.uint8"),
        ("a.yaml", entry("CenterCrop", height=300, width=300), r"cannot be used \(Crop size"),
        ("a.yaml", json.dumps(lambda_transform()), "a Lambda holds code"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        Recipe(reference_augmentation=str(path))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 300


@pytest.mark.parametrize(
    "content",
    [
        "transform: !!python/object/apply:os.mkdir [{mark}]",
        "transform: {{__class_fullname__: os.mkdir, path: {mark}}}",
        "transform: {{__class_fullname__: os.mkdir, path: {mark}, p: 1}}",
        "transform: {{__class_fullname__: albumentations.os.mkdir, path: {mark}, p: 1}}",
        "transform: {{__class_fullname__: Lambda, __name__: a, image: !!python/name:os.mkdir , p: 1}}",
    ],
)
def test_a_file_runs_no_code(tmp_path, content):
    mark = tmp_path / "mark"
    (tmp_path / "a.yaml").write_text(content.format(mark=mark))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "a.yaml"))):
        load_augmentation(str(tmp_path / "a.yaml"))
    assert not mark.exists()


@pytest.mark.parametrize("setting", [None, 3, ["a.yaml"]])
def test_a_setting_without_meaning(setting):
    with pytest.raises(UserError, match=r"reference_augmentation = .* has no meaning: use true, false or the path"):
        Recipe(reference_augmentation=setting)


def test_a_picture_that_comes_out_wrong_later_is_not_hidden(photos, picture):
    """An error of the pipeline must stop training, unlike an unusable picture, which is replaced."""
    dataset = OpenImageDataset("train", photos, image_size=32)
    object.__setattr__(dataset.recipe, "augment", augmentation.Augmentation(A.Resize(10, 10, p=1.0)))
    with pytest.raises(ValueError, match="has to keep both"):
        dataset[0]


# ------------------------------------------------------------------------------------------ importing it


@pytest.mark.integration
def test_albumentations_is_imported_where_samples_are_drawn_and_asks_no_network():
    code = """
import sys
import ldm.pipeline, ldm.evaluation, ldm.data.open_images, ldm.data.shards, ldm.miniworld.crops
from ldm.data.sample import Recipe
Recipe(reference_augmentation=False)
assert "albumentations" not in sys.modules
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
Recipe()
assert "albumentations" in sys.modules
assert not opened, opened
"""
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_albumentations(monkeypatch):
    """Samples without augmentation need no albumentations; with augmentation, the message names the cure."""
    monkeypatch.setitem(sys.modules, "albumentations", None)
    monkeypatch.delitem(sys.modules, "ldm.data.augmentation")
    monkeypatch.delattr("ldm.data.augmentation")
    assert Recipe(reference_augmentation=False).augment is None
    with pytest.raises(UserError, match=r"training needs albumentations: pip install .*\[train\]"):
        Recipe()
