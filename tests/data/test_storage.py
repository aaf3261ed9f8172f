"""Training data in storage gives the samples that the same data on this disk gives."""

import logging
import shutil

import pytest
import torch

from ldm import storage
from ldm.data.open_images import OpenImageDataset
from ldm.data.shards import ShardDataset, pack
from ldm.storage import StorageError, place
from ldm.util import UserError
from tests.conftest import empty_memory

BOX = "memory://box/mine"


@pytest.fixture
def stored(training_folder, tmp_path, monkeypatch):
    """training_folder with shards of three pictures, on this disk and in storage."""
    shutil.copytree(training_folder, folder := tmp_path / "data")
    pack(folder, "train", 3)
    empty_memory()
    monkeypatch.setenv("PAINT_BY_EXAMPLE_CACHE", str(tmp_path / "fetched"))
    for file in [*folder.glob("bbox/*.parquet"), *folder.glob("shards/*")]:
        (place(BOX) / file.relative_to(folder)).upload(file)
    return folder


def test_samples_from_storage_are_those_from_the_disk(stored, monkeypatch, caplog):
    for kind in (OpenImageDataset, ShardDataset):
        here, there = (kind("train", root, image_size=32) for root in (stored, BOX))
        assert len(here) == len(there)
        pairs = list(zip(iter(here), iter(there), strict=True)) if kind is ShardDataset else [(here[3], there[3])]
        assert pairs and all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)
    with pytest.raises(UserError, match=r"has no boxes for test"):
        OpenImageDataset("test", BOX)


def test_pictures_of_an_index_in_storage_are_beside_it(stored, monkeypatch):
    dataset = OpenImageDataset("train", BOX, image_size=32)
    picture, _ = dataset.index[0]
    monkeypatch.setattr(type(dataset.index), "path", lambda self, i: self.root / "photos/0.png")
    (place(BOX) / "photos/0.png").write_bytes(picture.read_bytes())
    assert dataset[0]["GT"].shape == (3, 32, 32)


def test_a_store_that_does_not_answer_ends_training(stored, monkeypatch, caplog):
    """A missing picture is replaced by another; a store that refuses would make all of them the same few."""
    monkeypatch.setattr(storage, "FIRST_WAIT", 0)
    dataset = OpenImageDataset("train", BOX, image_size=32)
    monkeypatch.setattr(type(dataset.index), "path", lambda self, i: place(f"{BOX}/{i}.png"))
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="in a row cannot be used"):
        dataset[0]
    monkeypatch.setattr(type(dataset.index), "path", lambda self, i: place(f"http://127.0.0.1:9/{i}.png"))
    with pytest.raises(StorageError, match="after 5 attempts"):
        dataset[0]


def test_shards_are_packed_into_storage(stored):
    paths = pack(place(BOX), "train", 4)
    assert [path.name for path in paths] == ["train-00000.tar", "train-00001.tar"]
    assert sorted(each.name for each in place(f"{BOX}/shards").files() if each.suffix == ".tar") == [
        path.name for path in paths
    ]
