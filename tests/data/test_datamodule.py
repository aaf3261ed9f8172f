"""Loaders for training: the samples of each process and worker, from single files and from shards."""

import json
import subprocess
import sys
import tarfile
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
import webdataset
from PIL import Image

from ldm.data.datamodule import DataModuleFromConfig, EpochSampler
from ldm.data.open_images import OpenImageDataset
from ldm.data.shards import ShardDataset, pack
from ldm.util import UserError
from tests.conftest import ROOT

COUNT = 46


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """46 small pictures of one colour each; the red channel is the picture's number."""
    root = tmp_path_factory.mktemp("photos")
    rows = []
    for split, count in (("train", COUNT), ("validation", 7)):
        for i in range(count):
            path = root / f"images/{split}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + i % 3, 40), (i * 5, 0, 0)).save(path)
            rows.append((split, str(path.relative_to(root)), [[5.0, 5.0, 30.0, 30.0], [10.0, 8.0, 32.0, 36.0]]))
    (root / "bbox").mkdir()
    table = pl.DataFrame(rows, schema=["split", "path", "boxes"], orient="row")
    for (split,), part in table.group_by("split"):
        part.drop("split").write_parquet(root / f"bbox/{split}.parquet")
    return root


def numbers(batches) -> list[int]:
    return [round(float((entry.amax() + 1) * 25.5)) for batch in batches for entry in batch["GT"][:, 0]]


def target(name, root, state, **params):
    return {"target": name, "params": {"state": state, "dataset_dir": str(root), "image_size": 16} | params}


def module(root, name="ldm.data.open-images.OpenImageDataset", **params):
    params = {"batch_size": 4, "num_workers": 0} | params
    return DataModuleFromConfig(
        train=target(name, root, "train"), validation=target(name, root, "validation"), **params
    )


class Trainer:
    """A trainer as loaders need it: the rank of this process, and the number of batches that it has seen."""

    def __init__(self, rank, world, seen=0):
        self.global_rank, self.world_size, self.num_devices = rank, world, world
        self.limit_train_batches = 1.0
        progress = SimpleNamespace(total=SimpleNamespace(ready=seen))
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))


def count_batches(root):
    """In two processes under Lightning, which must not divide the samples a second time."""
    import pytorch_lightning as lightning

    class Count(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, _):
            with open(f"{root}/seen-{self.global_rank}.txt", "a") as file:
                print(*numbers([batch]), file=file)
            return self.layer(batch["GT"].mean().reshape(1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Count(), datamodule=module(root))


@pytest.mark.integration
def test_two_processes_divide_an_epoch(photos):
    code = f"from tests.data.test_datamodule import count_batches; count_batches({str(photos)!r})"
    script = photos / "count.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\n")
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    seen = [int(word) for path in photos.glob("seen-?.txt") for word in path.read_text().split()]
    assert len(seen) == len(set(seen)) == 40, done.stderr  # 5 batches of 4 in each


@pytest.mark.parametrize("world", [1, 3])
def test_every_process_gets_its_own_share(world):
    last = None
    for epoch in range(3):
        shares = []
        for rank in range(world):
            sampler = EpochSampler(COUNT, shuffle=True, seed=5, rank=rank, world=world)
            sampler.set_epoch(epoch)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler) == COUNT // world
        keys = [key for share in shares for key in share]
        assert len(set(keys)) == len(keys) == COUNT // world * world and {key[0] for key in keys} == {epoch}
        assert [i for _, i in keys] != last
        last = [i for _, i in keys]
    shares = [list(EpochSampler(COUNT, shuffle=False, rank=rank, world=world)) for rank in range(world)]
    assert {key for share in shares for key in share} == {(0, i) for i in range(COUNT)}
    assert {len(share) for share in shares} == {-(-COUNT // world)}
    assert list(EpochSampler(COUNT, True, seed=1)) != list(EpochSampler(COUNT, True, seed=2))


def test_fewer_pictures_than_a_batch_are_an_error(photos):
    with pytest.raises(UserError, match="46 train pictures are fewer than a batch of 50"):
        module(photos, batch_size=50).train_dataloader()


def test_loaders(photos):
    data = module(photos)
    train = data.train_dataloader()
    assert len(train) == COUNT // 4
    first, again = numbers(train), numbers(train)
    assert first == again and len(set(first)) == len(first) == COUNT // 4 * 4
    train.sampler.set_epoch(1)
    assert numbers(train) != first
    validation = data.val_dataloader()
    batches = [list(validation), list(validation)]
    assert numbers(batches[0]) == list(range(7))
    assert all(torch.equal(a["ref_imgs"], b["ref_imgs"]) for a, b in zip(*batches, strict=True))
    with pytest.raises(UserError, match="has no 'test'"):
        data.test_dataloader()


@pytest.mark.parametrize("seen", [3, 11, 17])
def test_a_loader_begins_where_the_run_stopped(photos, seen):
    """An epoch has 11 batches. After `seen` batches, the loader gives those that an uninterrupted run would get."""
    whole, resumed = (module(photos) for _ in range(2))
    whole.trainer, resumed.trainer = Trainer(0, 1), Trainer(0, 1, seen)
    loader = whole.train_dataloader()
    batches = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batches += numbers(loader)
    loader = resumed.train_dataloader()
    assert numbers(loader) == batches[4 * seen :][: 44 - 4 * (seen % 11)]
    loader.sampler.set_epoch(seen // 11 + 1)
    assert numbers(loader) == batches[44 * (seen // 11 + 1) :][:44]
    resumed.trainer = Trainer(0, 1, seen + 1)
    resumed.trainer.train_dataloader = loader
    names = [round(int(path.stem)) for path in resumed.train_paths()]
    assert names == batches[4 * seen :][:4]


@pytest.mark.integration
def test_lightning_drives_the_loaders(photos):
    """Order and augmentation differ from epoch to epoch; validation always has the same samples."""
    import pytorch_lightning as lightning

    seen = {"train": [], "validation": []}

    class Watch(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, _):
            seen["train"].append((self.current_epoch, batch))
            return self.layer(batch["GT"].mean().reshape(1)).sum()

        def validation_step(self, batch, _):
            seen["validation"].append((self.current_epoch, batch))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    for name in ("ldm.data.open-images.OpenImageDataset", "ldm.data.shards.ShardDataset"):
        seen = {"train": [], "validation": []}
        if "shards" in name:
            pack(photos, "train", 10)
            pack(photos, "validation", 4)
        trainer.fit_loop.epoch_progress.reset()
        trainer.fit(Watch(), datamodule=module(photos, name, num_workers=2, batch_size=1))
        epochs = [[batch for epoch, batch in seen["train"] if epoch == number] for number in (0, 1)]
        assert len(epochs[0]) == len(epochs[1]) > 0
        assert numbers(epochs[0]) != numbers(epochs[1])
        masks = [batch["inpaint_mask"] for epoch, batch in seen["validation"]]
        half = len(masks) // 2
        assert half and all(torch.equal(a, b) for a, b in zip(masks[:half], masks[half:], strict=True))


# ------------------------------------------------------------------------------------------------ shards


@pytest.fixture
def shards(photos, tmp_path):
    (tmp_path / "bbox").symlink_to(photos / "bbox")
    (tmp_path / "images").symlink_to(photos / "images")
    pack(tmp_path, "train", 8)
    return tmp_path


def test_shards_are_what_webdataset_reads(shards):
    paths = sorted(shards.glob("shards/train-*.tar"))
    assert len(paths) == 6  # of 46, 8 or 7 each
    seen = {}
    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("pil"):
        seen[int(sample["__key__"])] = (sample["png"].getpixel((0, 0))[0] // 5, sample["json"]["boxes"])
    assert sorted(seen) == list(range(COUNT))
    assert all(red == i and boxes == [[5, 5, 30, 30], [10, 8, 32, 36]] for i, (red, boxes) in seen.items())


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_shards_are_divided_without_repeats(shards, world, workers):
    epochs = []
    for epoch in range(3):
        shares = []
        for rank in range(world):
            data = module(shards, "ldm.data.shards.ShardDataset", num_workers=workers, batch_size=3)
            data.trainer = Trainer(rank, world)
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            batches = list(loader)
            assert len(batches) == len(loader) and all(len(batch["GT"]) == 3 for batch in batches)
            shares.append(numbers(batches))
        assert len({len(share) for share in shares}) == 1 and len(shares[0]) > 0
        everything = [number for share in shares for number in share]
        assert len(set(everything)) == len(everything)
        epochs.append(everything)
    assert all(a != b for a, b in pairwise(epochs))


def test_shards_are_shuffled_inside(shards):
    orders = []
    for seed in (0, 1):
        orders.append(
            [
                numbers([{"GT": entry["GT"][None]}])[0]
                for entry in ShardDataset("train", str(shards), image_size=16, seed=seed)
            ]
        )
    assert orders[0] != orders[1]
    stored = []
    for path in sorted(shards.glob("shards/*.tar")):
        with tarfile.open(path) as tar:
            stored += [int(name.split(".")[0]) for name in tar.getnames()]
    runs = {tuple(stored[i : i + 14 : 2]) for i in range(0, len(stored), 2)}
    assert not any(tuple(order[i : i + 7]) in runs for order in orders for i in range(len(order) - 6))


def test_a_damaged_description_is_written_anew(shards):
    (shards / "shards/train.json").write_text("{")
    pack(shards, "train", 8)
    assert len(ShardDataset("train", str(shards))) == 42


@pytest.mark.parametrize("name", ["a#b", "d:x", "100%"])
def test_folders_of_any_name_hold_shards(photos, tmp_path, name):
    (tmp_path / name).mkdir()
    for folder in ("bbox", "images"):
        (tmp_path / name / folder).symlink_to(photos / folder)
    pack(tmp_path / name, "train", 23)
    assert len(list(ShardDataset("train", str(tmp_path / name), image_size=16))) == 46


def test_a_shard_without_a_usable_picture_is_left_out(photos, tmp_path):
    frame = pl.read_parquet(photos / "bbox/train.parquet")[:4]
    (tmp_path / "bbox").mkdir()
    (tmp_path / "images/train").mkdir(parents=True)
    for i in (0, 1, 3):
        (tmp_path / f"images/train/{i}.png").write_bytes((photos / f"images/train/{i}.png").read_bytes())
    frame.write_parquet(tmp_path / "bbox/train.parquet")
    pack(tmp_path, "train", 1)
    dataset = ShardDataset("train", str(tmp_path), image_size=16)
    assert sorted(numbers([{"GT": entry["GT"][None]} for entry in dataset])) == [0, 1, 3]


def test_a_shards_sample_is_that_of_the_single_file(shards):
    single, dataset = (cls("train", str(shards), image_size=16) for cls in (OpenImageDataset, ShardDataset))
    dataset.set_epoch(3)
    for entry in dataset:
        i = numbers([{"GT": entry["GT"][None]}])[0]
        place = next(j for j in range(COUNT) if single.index.path(j).stem == str(i))
        expected = single[3, place]
        assert all(torch.equal(entry[key], expected[key]) for key in expected)


def test_too_few_shards_are_an_error(shards):
    data = module(shards, "ldm.data.shards.ShardDataset", num_workers=4)
    data.trainer = Trainer(0, 2)
    assert data.train_dataloader().num_workers == 3
    data.trainer = Trainer(0, 7)
    with pytest.raises(UserError, match=r"6 train shards of 7 pictures in .* are too few for 7 x 1 workers"):
        data.train_dataloader()
    with pytest.raises(UserError, match=r"validation.json does not exist: .* --shards"):
        ShardDataset("validation", str(shards))


@pytest.mark.integration
def test_packing_goes_on_after_a_kill(photos, tmp_path):
    """After a kill while writing, the finished shards are complete, and the next run writes the others."""
    (tmp_path / "bbox").symlink_to(photos / "bbox")
    (tmp_path / "images").symlink_to(photos / "images")
    code = (
        "import os, pathlib, ldm.data.shards as s; write = s._write_shard\n"
        "def then_die(path, *rest):\n"
        "    if path.name == 'train-00003.tar': path.write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
        "    return write(path, *rest)\n"
        f"s._write_shard = then_die; s.pack(pathlib.Path({str(tmp_path)!r}), 'train', 8)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == -9
    found = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*.tar")}
    assert len(found) == 3
    with pytest.raises(UserError, match=r"train shards in .* are incomplete: run"):
        ShardDataset("train", str(tmp_path))
    pack(tmp_path, "train", 8)
    assert all((tmp_path / "shards" / name).stat().st_mtime_ns == time for name, time in found.items())
    assert len(list(ShardDataset("train", str(tmp_path), image_size=16))) == 6 * 7
    pack(tmp_path, "train", 20)  # packed otherwise: none of the old ones stays
    assert len(list(tmp_path.glob("shards/train-*.tar"))) == 3
    assert json.loads((tmp_path / "shards/train.json").read_text())["counts"] == [16, 15, 15]


def replace_in_shard(path, replacements):
    """Writes the shard again with other bytes for some members."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with webdataset.TarWriter(str(path)) as writer:
        keys = dict.fromkeys(name.split(".")[0] for name, _ in members)
        for number, key in enumerate(keys):
            files = {name.split(".", 1)[1]: data for name, data in members if name.startswith(key)}
            writer.write({"__key__": key, **files, **({"png": b"junk"} if replacements(number) else {})})


@pytest.mark.parametrize("where", [0, 3, 7])
def test_a_broken_picture_in_a_shard_costs_one_sample(shards, where, caplog):
    for path in shards.glob("shards/train-*.tar"):
        replace_in_shard(path, lambda number: number == where)
    dataset = ShardDataset("train", str(shards), image_size=16)
    assert len(list(dataset)) == len(dataset) == 42
    assert "replaced by another picture" in caplog.text


def test_shards_of_broken_pictures_are_an_error(shards):
    for path in shards.glob("shards/train-*.tar"):
        replace_in_shard(path, lambda _: True)
    with pytest.raises(UserError, match=r"no picture of 6 train shards in .* can be used: make them again"):
        list(ShardDataset("train", str(shards)))
    for path in shards.glob("shards/train-*.tar"):
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"a shard in .* cannot be read .*: make it again"):
        list(ShardDataset("train", str(shards)))


def test_read_bbox_packs_and_show_samples_draws(photos, tmp_path, script):
    rows = "".join(f"{i}.png,5,5,30,30\n" for i in range(COUNT))
    (tmp_path / "boxes.csv").write_text(rows)
    words = ("--images", photos / "images/train", "--annotations", tmp_path / "boxes.csv", "--dataset_dir", tmp_path)
    code, out, _ = script("read_bbox", "--format", "csv", *words, "--shards", 20)
    assert code == 0 and "train-00000.tar ... train-00002.tar: 3 shards" in out
    assert len(list(ShardDataset("train", str(tmp_path), image_size=16))) == 3 * 14
    code, out, _ = script("show_samples", "--dataset_dir", tmp_path, "--n", 3, "--output", tmp_path / "out/sheet.png")
    sheet = Image.open(tmp_path / "out/sheet.png")
    assert code == 0 and "3 samples" in out and sheet.size == (5 * 258 - 2, 3 * 274 - 2)
    colours = np.asarray(sheet).reshape(-1, 3)
    for colour in ((255, 0, 0), (255, 255, 0), (30, 144, 255)):  # box, grown box, window
        assert (np.abs(colours.astype(int) - colour).max(1) < 60).sum() > 100
    for words in (("--n", 0), ("--dataset_dir", tmp_path / "nowhere"), ("--output", "sheet")):
        code, _, err = script("show_samples", *words)
        assert code == 2 and err.count("\n") == 1
