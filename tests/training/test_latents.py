"""Latents that are encoded once: a run on them is the run on pictures."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ldm.checkpoint.load import write_checkpoint
from ldm.data.latents import LatentDataset
from ldm.data.open_images import OpenImageDataset
from ldm.training.latents import half_type
from ldm.training.start import initial_model
from ldm.util import UserError, load_config
from tests.conftest import ROOT
from tests.documents import commands_of
from tests.training.runs import command, losses, run

pytestmark = pytest.mark.integration
SETTINGS = {"state": "train", "image_size": 64, "arbitrary_mask_percent": 0.5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of configs/tiny.yaml with the smaller UNet of `command`."""
    torch.manual_seed(0)
    config = load_config("configs/tiny.yaml")
    config.model.params.unet_config.params.channel_mult = [1, 1]
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_checkpoint(initial_model(config, "none").state_dict(), path)
    return path


def prepare(photos, weights, *words):
    return run([
        *(sys.executable, "scripts/prepare_latents.py", "--base", "configs/tiny.yaml", "--pretrained_model", weights),
        *("--device", "cpu", f"data.params.dataset_dir={photos}", "data.params.train.params.image_size=64"),
        *("model.params.unet_config.params.channel_mult=[1,1]", *map(str, words)),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def prepared(photos, weights):
    done = prepare(photos, weights, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert "26 pictures x 2 draws" in done.stdout
    return photos / "latents"


def test_a_run_on_latents_has_the_losses_of_the_run_on_pictures(photos, weights, prepared, tmp_path):
    """14 steps of 4 samples are more than two epochs of 26 pictures. Up to there all losses are equal, to the rounding
    of half precision; the third epoch shows the first one's samples again."""
    start = ("--pretrained_model", weights)
    found = []
    for name, more in (("pictures", ()), ("latents", ("data.params.train.target=ldm.data.latents.LatentDataset",))):
        done = run(command(photos, tmp_path / name, *start, *more))
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / name).iterdir()
        found.append([losses(folder)[step] for step in range(14)])
    np.testing.assert_allclose(found[1][:12], found[0][:12], rtol=2e-3)
    assert len(set(found[0])) == 14 and abs(found[1][13] / found[0][13] - 1) < 0.5


def test_its_samples_are_those_of_the_pictures(photos, prepared, weights):
    pictures, latents = OpenImageDataset(dataset_dir=photos, **SETTINGS), LatentDataset(dataset_dir=photos, **SETTINGS)
    pictures.seed = latents.description.seed
    assert len(latents) == len(pictures) == 26
    config = load_config("configs/tiny.yaml")
    config.model.params.unet_config.params.channel_mult = [1, 1]
    model = initial_model(config, str(weights)).eval()
    for key in ((0, 0), (0, 25), (1, 7)):
        batch = {name: tensor[None] for name, tensor in pictures[key].items()}
        expected = model.encode_batch(batch)
        for name, tensor in latents[key].items():
            assert tensor.dtype == torch.float16
            torch.testing.assert_close(tensor[None].float(), expected[name], rtol=1e-3, atol=1e-3)
    assert torch.equal(latents[2, 7]["mask"], latents[0, 7]["mask"])  # the third epoch repeats the first
    with pytest.raises(IndexError):
        latents[0, 26]


def test_what_does_not_fit_is_refused(photos, prepared, weights, tmp_path):
    with pytest.raises(UserError, match="made with image_size 64 but the config has 128"):
        LatentDataset(dataset_dir=photos, **{**SETTINGS, "image_size": 128})
    with pytest.raises(UserError, match=r"validation\.json does not exist"):
        LatentDataset(dataset_dir=photos, **{**SETTINGS, "state": "validation"})
    other = load_file(weights)
    name = next(name for name in other if name.startswith("first_stage_model.encoder"))
    other[name] = other[name] + 1
    save_file(other, tmp_path / "other.safetensors")
    target = "data.params.train.target=ldm.data.latents.LatentDataset"
    done = run(command(photos, tmp_path / "logs", "--pretrained_model", tmp_path / "other.safetensors", target))
    assert done.returncode == 2 and "made by another autoencoder or CLIP" in done.stderr, done.stderr


def test_an_interrupted_preparation_continues(photos, prepared, weights):
    shard = prepared / "train-00000.safetensors"
    before = load_file(shard)
    shard.unlink()
    with pytest.raises(UserError, match="which continues where it stopped"):
        LatentDataset(dataset_dir=photos, **SETTINGS)
    done = prepare(photos, weights, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    after = load_file(shard)
    assert all((before[name] == after[name]).all() for name in before)
    stamp = shard.stat().st_mtime_ns
    prepare(photos, weights, "--epochs", 2)
    assert shard.stat().st_mtime_ns == stamp  # nothing was left to do
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-00000.safetensors cannot be read"):
        LatentDataset(dataset_dir=photos, **SETTINGS)[0]
    shard.unlink()
    prepare(photos, weights, "--epochs", 2)


@pytest.mark.parametrize("command", commands_of("scripts/prepare_latents.py"))
def test_the_commands_of_the_pages(command, photos, weights, script, monkeypatch, tmp_path):
    """As printed, with the tiny model and its pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "photos").mkdir()
    for name in ("train", "bbox"):
        (tmp_path / "photos" / name).symlink_to(photos / name)
    words = [word.replace("v1.yaml", "tiny.yaml") for word in command.split()[2:]]
    small = ["data.params.train.params.image_size=64", "model.params.unet_config.params.channel_mult=[1,1]"]
    small += ["data.params.dataset_dir=photos"]
    code, out, err = script("prepare_latents", *words, *small, "--pretrained_model", weights, "--device", "cpu")
    assert code == 0, err
    assert "wrote photos/latents" in out


def test_the_description_says_how_they_were_made(prepared):
    content = json.loads((prepared / "train.json").read_text())
    assert content["recipe"]["image_size"] == 64 and content["epochs"] == 2 and content["seed"] == 23
    assert content["precision"] == "float32"
    assert [half_type(name) for name in ("bf16-mixed", "16-mixed", "32-true", "None")] == [
        *(torch.bfloat16, torch.float16, torch.float32, torch.float32),
    ]
