"""Pairs: references from other pictures of the same object, from annotations to batches.

Every picture is noise, so that a reference without augmentation tells, pixel by pixel, which box it was cut from."""

import csv
import json
import logging
import shutil

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

from ldm.conventions import reference_to_tensor
from ldm.data.datamodule import EpochSampler
from ldm.data.index import BoxIndex
from ldm.data.latents import Description, LatentDataset
from ldm.data.open_images import OpenImageDataset
from ldm.data.sample import Recipe
from ldm.data.shards import ShardDataset, pack
from ldm.storage import place
from ldm.training.latents import picture_dataset
from ldm.util import UserError
from tests.conftest import empty_memory
from tests.data.annotations import listed, own, table
from tests.data.annotations import open_images as write_open_images

SIZE = (100, 80)
ROWS = [  # picture, box, object, reference, its box
    ("0.png", (20, 15, 60, 55), "mug", "", ()),
    ("1.png", (10, 20, 50, 60), "mug", "", ()),
    ("2.png", (30, 10, 80, 50), "mug", "", ()),
    ("2.png", (12, 30, 42, 70), "mug", "", ()),  # twice in one picture
    ("2.png", (40, 30, 90, 70), "hat", "", ()),
    ("3.png", (25, 25, 65, 65), "hat", "", ()),
    ("4.png", (20, 20, 70, 60), "alone", "", ()),
    ("5.png", (20, 20, 70, 60), "twin", "", ()),
    ("5.png", (30, 30, 80, 70), "twin", "", ()),
    ("6.png", (15, 12, 55, 52), "", "shirt.png", ()),
    ("7.png", (22, 18, 62, 58), "", "shirt.png", (5, 6, 45, 36)),
    ("8.png", (22, 18, 62, 58), "", "", ()),
    ("9.png", (18, 22, 68, 62), "hat", "trousers.png", ()),
]
BOXES = [(name, box) for name, box, *_ in ROWS]
SHIRT, PART, TROUSERS = ("shirt.png", (0, 0, 60, 50)), ("shirt.png", (5, 6, 45, 36)), ("trousers.png", (0, 0, 60, 50))
SOURCES = {  # box -> what its reference may be cut from in a pair; the others have none
    BOXES[0]: [*BOXES[1:4]],
    BOXES[1]: [BOXES[0], *BOXES[2:4]],
    BOXES[2]: BOXES[:2],
    BOXES[3]: BOXES[:2],
    BOXES[4]: [BOXES[5], BOXES[12]],
    BOXES[5]: [BOXES[4], BOXES[12]],
    BOXES[9]: [SHIRT],
    BOXES[10]: [PART],
    BOXES[12]: [TROUSERS],
}
HEADER = ["path", "x0", "y0", "x1", "y1", "object", "reference"]
HEADER += [f"reference_{edge}" for edge in ("x0", "y0", "x1", "y1")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten photos, and two pictures that serve only as references."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    for name in [*(f"{i}.png" for i in range(10)), "shirt.png", "trousers.png"]:
        width, height = SIZE if name[0].isdigit() else (60, 50)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
    return folder


def write_csv(path, rows=ROWS):
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(HEADER)
        lines.writerows((name, *box, thing, reference, *part) for name, box, thing, reference, part in rows)
    return path


@pytest.fixture
def prepared(photos, tmp_path, script):
    """The folder with the index of ROWS."""
    words = own("csv", tmp_path / "data", photos, write_csv(tmp_path / "boxes.csv"))
    code, out, err = script("read_bbox", *words, "--split", "train", "--shards", 4)
    assert code == 0 and f"{len(SOURCES)} of the boxes can take their reference from another" in out, err
    assert not listed(tmp_path / "data")
    return tmp_path / "data"


def crop(photos, source) -> torch.Tensor:
    """A reference without augmentation: the box and 10 px around it, inside the picture."""
    name, (x0, y0, x1, y1) = source
    pixels = np.asarray(Image.open(photos / name))
    region = pixels[max(0, y0 - 10) : y1 + 10, max(0, x0 - 10) : x1 + 10]
    return reference_to_tensor(Image.fromarray(cv2.resize(region, (224, 224), interpolation=cv2.INTER_LINEAR)))


def plain(cls, root, **params):
    settings = {"image_size": 32, "reference_augmentation": False, "pair_share": 1.0} | params
    return cls("train", str(root), **settings)


def same(a, b, names=("GT", "inpaint_image", "inpaint_mask", "ref_imgs")):
    return all(torch.equal(a[name], b[name]) for name in names)


# ------------------------------------------------------------------------------------------ draws


def test_the_reference_is_the_crop_of_another_row(prepared, photos):
    """In 60 epochs each box draws all views that ROWS allow it and no others; a box without any draws its own."""
    dataset = plain(OpenImageDataset, prepared)
    crops = {source: crop(photos, source) for source in {*BOXES, SHIRT, PART, TROUSERS}}
    drawn = {}
    for epoch in range(60):
        for i in range(len(dataset)):
            sample = dataset.sample((epoch, i))
            (source,) = (source for source, tensor in crops.items() if torch.equal(tensor, sample.entry["ref_imgs"]))
            target = (dataset.path(i).name, sample.plan.box)
            drawn.setdefault(target, set()).add(source)
            assert (sample.view is None) == (source == target)
    assert drawn == {box: set(SOURCES.get(box, [box])) for box in BOXES}


def test_the_share_holds_and_changes_nothing_but_references(prepared):
    """Beside samples without pairs, from the published augmentations."""
    settings = {"image_size": 16, "reference_augmentation": True}
    with_pairs, without = (plain(OpenImageDataset, prepared, pair_share=share, **settings) for share in (0.3, 0.0))
    pairs, possible = 0, 0
    for epoch in range(60):
        for i in range(len(without)):
            sample, alone = with_pairs.sample((epoch, i)), without[epoch, i]
            assert same(sample.entry, alone, ("GT", "inpaint_image", "inpaint_mask"))
            assert same(sample.entry, alone) == (sample.view is None)
            has_other = (with_pairs.path(i).name, sample.plan.box) in SOURCES
            possible += has_other
            pairs += sample.view is not None
            assert has_other or sample.view is None
    assert possible > 300 and abs(pairs / possible - 0.3) < 4 * (0.3 * 0.7 / possible) ** 0.5


def test_references_from_other_pictures_are_not_augmented(prepared):
    changed, pairs = (
        plain(OpenImageDataset, prepared, image_size=16, reference_augmentation=augmentation, pair_share=0.5)
        for augmentation in (True, False)
    )
    found = {False: [], True: []}
    for epoch in range(20):
        for i in range(len(pairs)):
            one, other = changed.sample((epoch, i)), pairs.sample((epoch, i))
            found[one.view is not None].append(torch.equal(one.entry["ref_imgs"], other.entry["ref_imgs"]))
    assert found[True] and all(found[True]) and not all(found[False])


def test_views_are_equally_likely(prepared):
    index = BoxIndex(prepared, "train")
    position = next(i for i in range(len(index)) if index.path(i).name == "0.png")
    rng = np.random.default_rng(0)
    counts = np.unique([str(index.other_view(position, 0, rng)) for _ in range(3000)], return_counts=True)[1]
    assert len(counts) == 3 and (np.abs(counts - 1000) < 110).all()  # four standard deviations


def test_a_resumed_run_draws_the_same(prepared):
    sampler = EpochSampler(10, shuffle=True, seed=5)
    whole = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        whole += [plain(OpenImageDataset, prepared, pair_share=0.5)[key] for key in sampler]
    later = EpochSampler(10, shuffle=True, seed=5)
    later.resume(1, 4)
    loader = DataLoader(plain(OpenImageDataset, prepared, pair_share=0.5), sampler=later, num_workers=2, batch_size=2)
    rest = [{name: tensor[i] for name, tensor in batch.items()} for batch in loader for i in range(2)]
    assert len(rest) == 6 and all(same(a, b) for a, b in zip(whole[14:], rest, strict=True))


def test_a_reference_that_is_gone_is_named(prepared, caplog):
    lost = pl.col("reference").list.eval(pl.element().str.replace("shirt", "lost"))
    frame = pl.read_parquet(prepared / "bbox/train.parquet").with_columns(lost)
    frame.write_parquet(prepared / "bbox/train.parquet")
    dataset = plain(OpenImageDataset, prepared)
    with caplog.at_level(logging.WARNING):
        entries = [dataset[i] for i in range(10)]
    assert len(entries) == 10 and dataset.unusable_count == 2
    assert all("lost.png does not exist" in record.message for record in caplog.records)


# ------------------------------------------------------------------------------------------ shards


@pytest.mark.parametrize("where", ["disk", "storage"])
def test_shards_give_the_samples_of_the_index(where, prepared, photos, tmp_path, monkeypatch):
    """From the shards alone: the index and the pictures are not there."""
    single = plain(OpenImageDataset, prepared, pair_share=0.7)
    expected = [[single[epoch, i] for i in range(10)] for epoch in range(4)]
    root = tmp_path / "elsewhere"
    shutil.copytree(prepared / "shards", root / "shards")
    moved = shutil.move(photos, photos.with_name("hidden"))
    if where == "storage":
        empty_memory()
        monkeypatch.setenv("PAINT_BY_EXAMPLE_CACHE", str(tmp_path / "fetched"))
        root = place("memory://box/shop")
        for file in (tmp_path / "elsewhere/shards").iterdir():
            (root / "shards" / file.name).upload(file)
    try:
        dataset = plain(ShardDataset, root, pair_share=0.7)
        dataset.divide(batch_size=1)
        assert len(list(prepared.glob("shards/*.tar"))) == 4  # three of photos, one of references
        for epoch in range(4):
            dataset.set_epoch(epoch)
            found = list(dataset)
            assert len(found) == 9  # three of each shard
            assert all(sum(same(entry, other) for other in expected[epoch]) == 1 for entry in found)
    finally:
        shutil.move(moved, photos)


def test_packing_goes_on_and_forgets(prepared, photos, tmp_path, script):
    before = {path.name: path.read_bytes() for path in (prepared / "shards").iterdir()}
    for name in ("train-00002.tar", "train-00003.npy"):
        (prepared / "shards" / name).unlink()
    pack(prepared, "train", 4)
    assert {path.name: path.read_bytes() for path in (prepared / "shards").iterdir()} == before
    words = own("csv", prepared, photos, write_csv(tmp_path / "alone.csv", ROWS[6:7] * 3))
    code, _, _ = script("read_bbox", *words, "--split", "train", "--shards", 4)
    assert code == 0 and {path.name for path in (prepared / "shards").iterdir()} == {"train-00000.tar", "train.json"}
    with pytest.raises(UserError, match=r"no pairs in the train shards in .*: give"):
        plain(ShardDataset, prepared)


def test_damaged_views_of_shards(prepared):
    (prepared / "shards/train-00001.npy").unlink()
    with pytest.raises(UserError, match=r"the views of the train shards in .* cannot be read .*: remove train.json"):
        plain(ShardDataset, prepared)
    assert len(list(plain(ShardDataset, prepared, pair_share=0.0))) == 9


# ------------------------------------------------------------------------------------------ formats


def objects(root, split="train"):
    """Path -> its objects."""
    return {path.rpartition("/")[2]: row["object"] for path, row in table(root, split).items()}


def test_the_index_of_a_csv(prepared, photos):
    rows = {path.rpartition("/")[2]: row for path, row in table(prepared).items()}
    assert rows["2.png"]["object"] == ["mug", "mug", "hat"]
    assert rows["7.png"]["reference"] == [str(photos / "shirt.png")]
    assert rows["7.png"]["reference_box"] == [[5.0, 6.0, 45.0, 36.0]]
    assert rows["6.png"]["reference_box"] == [[0.0, 0.0, 60.0, 50.0]]
    assert rows["8.png"]["reference"] == [None] and rows["8.png"]["reference_box"] == [None]


def test_coco_has_the_same_as_keys(prepared, photos, tmp_path, script):
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(10)]
    annotations = []
    for name, (x0, y0, x1, y1), thing, reference, part in ROWS:
        more = {"object": thing, "reference": reference}
        if part:
            more["reference_box"] = [part[0], part[1], part[2] - part[0], part[3] - part[1]]
        annotations.append({"image_id": int(name[0]), "bbox": [x0, y0, x1 - x0, y1 - y0], **more})
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    words = own("coco", tmp_path / "coco", photos, tmp_path / "a.json")
    assert script("read_bbox", *words, "--split", "train")[0] == 0
    assert table(tmp_path / "coco") == table(prepared)


@pytest.mark.parametrize("key", ["track_id", "instance_id"])
def test_tracks_of_videos_are_objects(key, photos, tmp_path, script):
    """The same id in another video is another object; 3, 3.0 and "3" are the same."""
    images = [{"id": i, "file_name": f"{i}.png", "video_id": i // 3} for i in range(6)]
    tracks = (3, 3.0, "3", 3, 4, 3)
    annotations = [{"image_id": i, "bbox": [20, 20, 40, 40], key: track} for i, track in enumerate(tracks)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    code, out, _ = script("read_bbox", *own("coco", tmp_path, photos, tmp_path / "a.json"), "--split", "train")
    assert code == 0 and "5 of the boxes can take their reference from another" in out
    assert list(objects(tmp_path).values()) == [["0/3"]] * 3 + [["1/3"], ["1/4"], ["1/3"]]


def test_tracks_in_voc(photos, tmp_path, script):
    """As ImageNet VID has them: a folder of frames for each video."""
    for video in "ab":
        (tmp_path / "photos" / video).mkdir(parents=True)
        (tmp_path / "xml" / video).mkdir(parents=True)
        for i in range(2):
            shutil.copy(photos / f"{i}.png", tmp_path / "photos" / video)
            box = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>60</xmax><ymax>60</ymax></bndbox>"
            text = f"<annotation><object><trackid>0</trackid>{box}</object></annotation>"
            (tmp_path / "xml" / video / f"{i}.xml").write_text(text)
    words = own("voc", tmp_path, tmp_path / "photos", tmp_path / "xml")
    assert script("read_bbox", *words, "--split", "train")[0] == 0
    index = BoxIndex(tmp_path, "train")
    for i in range(4):
        other, _ = index.other_view(i, 0, np.random.default_rng(0))
        assert other.parent == index.path(i).parent and other != index.path(i)


def test_the_layout_of_open_images(photos, tmp_path, script):
    (tmp_path / "images/train_0").mkdir(parents=True)
    for i in range(3):
        shutil.copy(photos / f"{i}.png", tmp_path / f"images/train_0/{i}.png")
    shutil.copy(photos / "shirt.png", tmp_path / "shirt.png")
    write_open_images(tmp_path, [(i, "/m/1", 0.25, 0.25, 0.75, 0.75) for i in range(3)], "train")
    path = tmp_path / "annotations/oidv6-train-annotations-bbox.csv"
    first, *rest = path.read_text().splitlines()
    more = ["7,,,,,", "7,,,,,", ",shirt.png,0.1,0.2,0.5,0.6"]
    lines = [f"{line},{cells}" for line, cells in zip(rest, more, strict=True)]
    path.write_text("\n".join([f"{first},{','.join(HEADER[5:])}", *lines, ""]))
    code, out, err = script("read_bbox", "--dataset_dir", tmp_path)
    assert code == 0 and "3 of the boxes can take their reference from another" in out, err
    rows = table(tmp_path)
    assert [row["object"] for row in rows.values()] == [["7"], ["7"], [None]]
    assert rows["images/train_0/2.png"]["reference"] == ["shirt.png"]
    assert rows["images/train_0/2.png"]["reference_box"] == [[pytest.approx(edge) for edge in (6, 10, 30, 30)]]


def test_what_is_wrong_with_references_is_listed(photos, tmp_path, script):
    """Their rows stay, without a reference."""
    wrong = {
        "nowhere.png,,,,": "references: pictures that cannot be read",
        "shirt.png,70,10,90,30": "references: boxes outside their picture",
        "shirt.png,40,10,20,30": "references: boxes inverted or empty",
        "shirt.png,a,10,20,30": "references: boxes that are no numbers",
        "shirt.png,,10,20,30": "references: boxes that are no numbers",
        "shirt.png,20,10,90,30": "references: boxes cut off at the edge of their picture",
    }
    lines = [f"{i}.png,20,20,60,60,,{cells}" for i, cells in enumerate(wrong)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(HEADER), *lines, ""]))
    code, out, err = script("read_bbox", *own("csv", tmp_path, photos, tmp_path / "a.csv"), "--split", "train")
    assert code == 0 and "1 of the boxes can take their reference from another" in out, err
    found = [(kind, name) for kind, name in listed(tmp_path) if kind.startswith("references")]
    assert sorted(kind for kind, _ in found) == sorted(wrong.values())
    assert any(name.endswith("nowhere.png does not exist: check the path") for _, name in found), found
    assert [row["reference_box"] for row in table(tmp_path).values()] == [*[[None]] * 5, [[20.0, 10.0, 60.0, 30.0]]]


def test_pictures_of_an_object_are_held_out_together(photos, tmp_path, script):
    rows = [(f"{i}.png", (20, 20, 60, 60), f"object {i // 2}", "", ()) for i in range(10)]
    words = own("csv", tmp_path, photos, write_csv(tmp_path / "a.csv", rows))
    assert script("read_bbox", *words, "--validation", 0.4)[0] == 0
    train, held = (objects(tmp_path, split) for split in ("train", "validation"))
    assert len(train) == 6 and len(held) == 4
    assert not {str(names) for names in train.values()} & {str(names) for names in held.values()}


# ------------------------------------------------------------------------------------------ without pairs, and errors


def test_an_index_without_pairs_is_as_before(photos, tmp_path, script):
    (tmp_path / "a.csv").write_text("path,x0,y0,x1,y1,object,reference\n0.png,20,20,60,60,,\n1.png,20,20,60,60,, \n")
    assert script("read_bbox", *own("csv", tmp_path, photos, tmp_path / "a.csv"), "--split", "train")[0] == 0
    frame = pl.read_parquet(tmp_path / "bbox/train.parquet")
    assert frame.columns == ["path", "width", "height", "boxes", "label"]
    assert BoxIndex(tmp_path, "train").arrays.keys() == {"boxes", "ends", "letters", "path_ends"}
    with pytest.raises(UserError, match=r"pair_share = 0.5 but there are no pairs in the train index of .*: give the"):
        plain(OpenImageDataset, tmp_path, pair_share=0.5)
    code, _, err = script("show_samples", "--dataset_dir", tmp_path, "--pair_share", 1)
    assert code == 2 and "no pairs in" in err and err.count("\n") == 1


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(UserError, match=r"pair_share = .* is out of range: use a share from 0 to 1"):
        Recipe(pair_share=share)


@pytest.mark.parametrize(
    "columns",
    [
        {"object": [["a"], ["a", "b"]]},
        {"object": ["a", "a"]},
        {"reference": [["a"], ["b"]]},
        {"reference": [["a"], ["b"]], "reference_box": [[[1.0, 2.0]], [None]]},
    ],
)
def test_a_damaged_index_is_an_error(columns, tmp_path):
    (tmp_path / "bbox").mkdir()
    rows = {"path": ["a.png", "b.png"], "boxes": [[[1.0, 2.0, 30.0, 40.0]]] * 2}
    pl.DataFrame(rows | columns).write_parquet(tmp_path / "bbox/train.parquet")
    with pytest.raises(UserError, match=r"train.parquet cannot be read .*: make it again"):
        BoxIndex(tmp_path, "train")


# ------------------------------------------------------------------------------------------ what else reads them


def test_show_samples_draws_where_the_reference_comes_from(prepared, tmp_path, script):
    output = tmp_path / "sheet.png"
    code, _, err = script("show_samples", "--dataset_dir", prepared, "--pair_share", 1, "--n", 3, "--output", output)
    assert code == 0, err
    assert Image.open(output).size == (6 * 258 - 2, 3 * 274 - 2)


def test_latents_are_prepared_from_pairs_and_remember_it(prepared, tmp_path):
    params = {"state": "train", "image_size": 32, "pair_share": 0.5}
    data = {"params": {"dataset_dir": str(prepared), "train": {"params": params}}}
    dataset = picture_dataset(OmegaConf.create({"data": data, "lightning": {"seed": 3}}))
    assert dataset.recipe.pair_share == 0.5
    (tmp_path / "latents").mkdir()
    before = {"networks": "", "seed": 0, "pictures": 1, "epochs": 1, "per_shard": 1, "precision": "float32"}
    recipe = {"arbitrary_mask_percent": 0.5, "image_size": 32, "reference_augmentation": True}
    recipe |= {"mask_augmentation": True, "exact": False}  # as written before there were pairs
    (tmp_path / "latents/train.json").write_text(json.dumps(before | {"recipe": recipe}))
    assert Description.read(tmp_path / "latents", "train").recipe["pair_share"] == 0
    with pytest.raises(UserError, match=r"made with pair_share 0.0 but the config has 0.5: make it again"):
        LatentDataset("train", tmp_path, image_size=32, pair_share=0.5)
    with pytest.raises(UserError, match=r"train-00000.safetensors does not exist"):
        LatentDataset("train", tmp_path, image_size=32)
