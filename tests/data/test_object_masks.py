"""Where an object is in its reference (ldm/data/object_masks.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.object_masks import bounding_box, mask_path, object_in
from ldm.data.open_images import OpenImageDataset
from ldm.data.sample import Recipe
from ldm.data.shards import ShardDataset
from ldm.images import PictureFile
from ldm.miniworld.worlds import DEFAULT_WORLD, Individuals
from ldm.miniworld.write import write_world
from ldm.storage import place
from ldm.util import UserError
from tests.data.annotations import own


@pytest.fixture
def picture(tmp_path):
    """A red object, of 20 x 30 pixels, and one beside it; -> (file, box of the first)."""
    pixels, numbers = np.full((60, 80, 3), 90, np.uint8), np.zeros((60, 80), np.uint8)
    pixels[10:40, 20:40], numbers[10:40, 20:40] = (250, 0, 0), 7
    pixels[20:50, 45:70], numbers[20:50, 45:70] = (0, 0, 250), 2
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "images/train/1.png")
    Image.fromarray(numbers).save(tmp_path / "masks/train/1.png")
    return tmp_path / "images/train/1.png", (20, 10, 40, 40)


def test_masks_lie_beside_the_pictures():
    assert mask_path(Path("a/images/b/images/c/d.jpg")) == Path("a/images/b/masks/c/d.png")
    assert str(mask_path(place("memory://a/images/d.jpeg"))) == "memory://a/masks/d.png"
    with pytest.raises(UserError, match="is not in a folder images/"):
        mask_path(Path("a/myimages/d.jpg"))


def test_the_object_is_the_one_of_the_box(picture):
    path, box = picture
    found = object_in(PictureFile(path), box, (10, 0, 60, 60))
    assert found.shape == (60, 50) and bounding_box(found == 255) == (10, 10, 30, 40) and (found == 255).sum() == 600
    assert bounding_box(object_in(PictureFile(path), (44, 21, 71, 50), (0, 0, 80, 60)) > 0) == (45, 20, 70, 50)
    Image.new("L", (80, 60)).save(mask_path(path))
    with pytest.raises(UserError, match="shows no object"):
        object_in(PictureFile(path), box, (0, 0, 9, 9))
    Image.new("L", (80, 61)).save(mask_path(path))
    with pytest.raises(UserError, match="is 80 x 61 but its picture is 80 x 60"):
        object_in(PictureFile(path), box, (0, 0, 9, 9))
    mask_path(path).unlink()
    with pytest.raises(UserError, match=r"mask .* does not exist"):
        object_in(PictureFile(path), box, (0, 0, 9, 9))


@pytest.mark.parametrize("augmentation", [False, True])
def test_the_mask_moves_with_its_reference(picture, augmentation):
    """The reference is red where the mask is 1, and nowhere else, whatever was drawn; the other keys stay the same."""
    path, box = picture
    recipes = [Recipe(image_size=32, reference_augmentation=augmentation, object_masks=each) for each in (True, False)]
    for seed in range(6):
        file, boxes = PictureFile(path), np.array([box])
        entry, plain = (each.sample(file, boxes, np.random.default_rng(seed)).entry for each in recipes)
        shown = entry.pop("ref_mask")[0] == 1
        assert entry.keys() == plain.keys() and all(torch.equal(entry[name], plain[name]) for name in plain)
        red = entry["ref_imgs"][0] - entry["ref_imgs"][1] > 1
        assert shown.float().mean() > 0.1 and (shown != red).float().mean() < 0.06


def test_shards_have_the_masks_of_pictures_and_references(tmp_path, script):
    """From the shards alone, the samples are those of the files; the masks of references are in other shards."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    rows = ["path,x0,y0,x1,y1,object"]
    for i in range(6):
        numbers = np.zeros((60, 80), np.uint8)
        numbers[10 + i : 40, 20 : 50 + i] = i + 1
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / f"images/{i}.png")
        Image.fromarray(numbers).save(tmp_path / f"masks/{i}.png")
        rows.append(f"{i}.png,20,{10 + i},{50 + i},40,{'mug' if i % 2 else 'hat'}")
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    words = own("csv", tmp_path / "data", tmp_path / "images", tmp_path / "boxes.csv")
    code, _, err = script("read_bbox", *words, "--split", "train", "--shards", 2)
    assert code == 0, err
    settings = {"image_size": 32, "pair_share": 0.5, "object_masks": True}
    single = OpenImageDataset("train", str(tmp_path / "data"), **settings)
    expected = [single.sample((0, i)) for i in range(6)]
    assert {each.view is None for each in expected} == {True, False}
    for kind in ("images", "masks"):
        (tmp_path / kind).rename(tmp_path / f"hidden-{kind}")
    packed = list(ShardDataset("train", str(tmp_path / "data"), **settings))
    assert len(packed) == 6
    for entry in packed:
        assert sum(all(torch.equal(entry[name], each.entry[name]) for name in entry) for each in expected) == 1


@pytest.mark.parametrize("world", [DEFAULT_WORLD, Individuals(0)], ids=["shapes", "individuals"])
def test_the_small_world_has_masks(world, tmp_path):
    write_world(tmp_path / "world", {"train": 1}, (160, 120), 0, world)
    (path,) = (tmp_path / "world/images").rglob("*.jpg")
    numbers = np.asarray(Image.open(mask_path(path)))
    rows = (tmp_path / "world/annotations/train-objects.jsonl").read_text().splitlines()
    assert numbers.shape == (120, 160) and numbers.max() == len(rows)
    assert f'"box": {list(bounding_box(numbers == 1))}' in rows[0]
