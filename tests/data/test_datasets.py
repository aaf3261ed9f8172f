"""OpenImageDataset and its index, with good and with damaged data."""

import logging
import multiprocessing
import pickle
import shutil

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm.conventions import CLIP_MEAN, CLIP_STD, image_to_tensor
from ldm.data import masks
from ldm.data.index import BoxIndex
from ldm.data.open_images import OpenImageDataset
from ldm.util import UserError
from tests.conftest import ROOT


@pytest.fixture
def photos(tmp_path):
    """40 JPEGs in the published layout."""
    sources = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples/image").glob("*.jpg"))]
    for i in range(40):
        rng = np.random.default_rng(i)
        size = (int(rng.integers(80, 160)), int(rng.integers(80, 160)))
        for folder in ("images", "bbox"):
            (tmp_path / folder / "train_0").mkdir(parents=True, exist_ok=True)
        sources[i % 3].resize(size).save(tmp_path / f"images/train_0/{i:02}.jpg")
        (tmp_path / f"bbox/train_0/{i:02}.txt").write_text("10.5 20.0 60.9 70.2\n20.0 10.0 50.0 60.0\n")
    return tmp_path


def make(root, **params):
    return OpenImageDataset("train", root, image_size=32, **params)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_sample_is_a_function_of_seed_epoch_and_index(photos):
    dataset = make(photos)
    keys = [(epoch, i) for epoch in range(2) for i in range(40)]
    alone = [dataset[key] for key in keys]
    for workers in (0, 1, 3):
        loader = DataLoader(make(photos), sampler=keys, num_workers=workers, batch_size=7)
        loaded = [{k: v[i] for k, v in batch.items()} for batch in loader for i in range(len(batch["GT"]))]
        assert all(same(a, b) for a, b in zip(alone, loaded, strict=True))
    assert same(dataset[3], dataset[0, 3]) and not same(dataset[3], dataset[1, 3])
    assert not same(dataset[3], make(photos, seed=1)[3])
    with pytest.raises(IndexError):
        dataset[40]


def test_every_box_of_a_picture_is_drawn(photos):
    dataset = make(photos)
    assert {dataset.sample((epoch, 0)).plan.box for epoch in range(30)} == {(10, 20, 60, 70), (20, 10, 50, 60)}


def test_each_augmentation_can_be_switched_off(photos):
    plain = make(photos, reference_augmentation=False, mask_augmentation=False)
    for epoch in range(20):
        sample = plain.sample((epoch, 0))
        assert sample.plan.points is None and sample.plan.grown == sample.plan.box
        x0, y0, x1, y1 = masks.reference_region(sample.plan.box, sample.picture.size)
        region = cv2.resize(sample.picture.pixels()[y0:y1, x0:x1], (224, 224))
        expected = (image_to_tensor(region) + 1) / 2
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        torch.testing.assert_close(sample.entry["ref_imgs"], (expected - mean) / std)


def test_parquet_and_txt_are_the_same_data(photos, script):
    from_txt = [make(photos)[i] for i in range(40)]
    boxes = [[[10.5, 20.0, 60.9, 70.2], [20.0, 10.0, 50.0, 60.0]]] * 40
    paths = [f"images/train_0/{i:02}.jpg" for i in range(40)]
    pl.DataFrame({"path": paths, "boxes": boxes}).write_parquet(photos / "bbox/train.parquet")
    for _ in range(2):  # the second time from the memory map
        dataset = make(photos)
        assert all(same(a, dataset[i]) for i, a in enumerate(from_txt))
    assert isinstance(dataset.index.arrays["boxes"], np.memmap)


def test_a_changed_index_is_noticed(photos):
    for left in (40, 30):
        frame = pl.DataFrame(
            {"path": [f"images/train_0/{i:02}.jpg" for i in range(left)], "boxes": [[[10.0, 10.0, 50.0, 50.0]]] * left}
        )
        frame.write_parquet(photos / "bbox/train.parquet")
        assert len(BoxIndex(photos, "train")) == left
    assert len(list(photos.glob("bbox/.train-*"))) == 1


def break_some(root):
    """Makes four pictures unusable: a truncated file, a missing one, one that is not a picture, a box outside."""
    pictures = [root / f"images/train_0/0{i}.jpg" for i in range(3)]
    pictures[0].write_bytes(pictures[0].read_bytes()[:1500])
    pictures[1].unlink()
    pictures[2].write_text("no picture")
    (root / "bbox/train_0/03.txt").write_text("500.0 500.0 600.0 600.0\n")


def test_a_broken_picture_is_replaced_counted_and_logged_once(photos, caplog):
    whole = [make(photos)[i] for i in range(40)]
    break_some(photos)
    dataset = make(photos)
    with caplog.at_level(logging.WARNING):
        loaded = [[dataset[epoch, i] for i in range(40)] for epoch in range(2)]
    assert dataset.unusable_count == 4
    assert len(caplog.records) == 4 and all(
        "replaced by another picture" in record.message for record in caplog.records
    )
    assert all(same(a, b) for a, b in zip(whole[4:], loaded[0][4:], strict=True))
    assert all(entry["GT"].shape == (3, 32, 32) for epoch in loaded for entry in epoch)
    with_workers = make(photos)
    keys = [(0, i) for i in range(40)]
    batches = list(DataLoader(with_workers, sampler=keys, num_workers=2, batch_size=1))
    assert with_workers.unusable_count == 4  # counted over the processes
    assert all(torch.equal(batch["GT"][0], entry["GT"]) for batch, entry in zip(batches, loaded[0], strict=True))


def test_a_split_without_a_usable_picture_is_an_error(photos):
    shutil.rmtree(photos / "images")
    with pytest.raises(UserError, match=r"40 train pictures .* cannot be used \(the last one: .*does not exist"):
        make(photos)[0]
    with pytest.raises(UserError, match="has no boxes for validation: prepare them"):
        OpenImageDataset("validation", photos)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3\n", "without four numbers"),
        ("a b c d\n", "x0 y0 x1 y1"),
        ("nan 1 2 3\n", "x0 y0 x1 y1"),
        ("1e300 1 2 3", "x0 y0"),
    ],
)
def test_a_damaged_txt_is_an_error(photos, text, words):
    (photos / "bbox/train_0/05.txt").write_text(text)
    with pytest.raises(UserError, match=f"05.txt.*{words}"):
        make(photos)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no parquet", b"PAR1" + bytes(100) + b"PAR1"),
        *({"path": ["a", "b"], "boxes": boxes} for boxes in ([[1.0, 2.0, 3.0, 4.0]] * 2, [[[1.0, 2, 3]], [[1.0] * 5]])),
        *({"path": ["a"], "boxes": [[[1.0, 2.0, 3.0, edge]]]} for edge in (float("nan"), None, 1e300)),
        {"path": [None, "b"], "boxes": [[[1.0, 2.0, 3.0, 4.0]]] * 2},
        {"path": ["a"], "boxes": ["x"]},
        {"path": ["a"]},
    ],
)
def test_a_damaged_index_is_an_error(photos, content):
    if isinstance(content, bytes):
        (photos / "bbox/train.parquet").write_bytes(content)
    else:
        pl.DataFrame(content, strict=False).write_parquet(photos / "bbox/train.parquet")
    with pytest.raises(UserError, match=r"train.parquet cannot be read .*: make it again"):
        make(photos)


def test_an_index_that_cannot_be_unpacked_stays_in_memory(photos, monkeypatch):
    frame = pl.DataFrame({"path": ["images/train_0/00.jpg"], "boxes": [[[10.0, 20.0, 60.0, 70.0]]]})
    frame.write_parquet(photos / "bbox/train.parquet")

    def refused(folder):
        raise UserError(f"{folder}: cannot be written to")

    monkeypatch.setattr("ldm.data.index.staging", refused)
    index = BoxIndex(photos, "train")
    assert not isinstance(index.arrays["boxes"], np.memmap)
    assert pickle.loads(pickle.dumps(index))[0][1].tolist() == [[10, 20, 60, 70]]


def open_elsewhere(index, queue):
    queue.put((len(index), index[7], isinstance(index.arrays["boxes"], np.memmap)))


@pytest.mark.integration
def test_an_index_goes_to_another_process_as_a_place(photos):
    boxes = [[[10.0, 20.0, 60.0, 70.0]]] * 40
    frame = pl.DataFrame({"path": [f"images/train_0/{i:02}.jpg" for i in range(40)], "boxes": boxes})
    frame.write_parquet(photos / "bbox/train.parquet")
    index = BoxIndex(photos, "train")
    assert len(pickle.dumps(index)) < 2000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=open_elsewhere, args=(index, queue))
    process.start()
    length, (path, found), mapped = queue.get(timeout=120)
    process.join()
    assert (length, path, mapped) == (40, index.path(7), True) and found.tolist() == boxes[7]
