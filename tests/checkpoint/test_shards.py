"""Weights in shards, under other names and wrapped, as diffusers, accelerate and training loops write them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.files import read_file
from ldm.checkpoint.names import UNET
from ldm.checkpoint.shards import write_shards
from ldm.util import UserError
from tests.checkpoint.conftest import assert_same_tensors

UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(pipe_folder, tmp_path):
    return shutil.copytree(pipe_folder, tmp_path / "pipe")


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "bf16", "non_ema"])
def test_shards_that_diffusers_wrote(pipe, pipe_folder, folder, variant, safe):
    shutil.rmtree(folder / "unet")
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="200KB", variant=variant, safe_serialization=safe)
    assert len(list((folder / "unet").glob("*-of-*"))) > 2
    assert_same_tensors(read_checkpoint(folder), read_checkpoint(pipe_folder))
    for index in (folder / "unet").glob("*.json"):
        if "index" in index.name:
            index.unlink()  # the shards' own numbers are enough
    assert_same_tensors(read_checkpoint(folder), read_checkpoint(pipe_folder))
    next((folder / "unet").glob("*-00002-of-*")).unlink()
    with pytest.raises(UserError, match=r"-00001-of-.* lacks .*-00002-of-.*, one of \d+ shards: add it"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["bf16.safetensors", "non_ema.safetensors", "fp16.safetensors", "ema_only.safetensors"]
)
def test_variants(pipe_folder, folder, name):
    (folder / "unet" / UNET_FILE).rename(folder / "unet" / f"diffusion_pytorch_model.{name}")
    assert_same_tensors(read_checkpoint(folder), read_checkpoint(pipe_folder))
    save_file({"other": torch.ones(1)}, folder / "unet/diffusion_pytorch_model.zz.safetensors")  # is not preferred
    assert_same_tensors(read_checkpoint(folder), read_checkpoint(pipe_folder))
    shutil.copy(folder / "unet" / f"diffusion_pytorch_model.{name}", folder / "unet" / UNET_FILE)
    save_file({"other": torch.ones(1)}, folder / "unet" / f"diffusion_pytorch_model.{name}")
    assert_same_tensors(read_checkpoint(folder), read_checkpoint(pipe_folder))  # the plain name comes first


def sharded(tensors, folder, places=None):
    """Published names in two shards and an index, as accelerate's save_model writes them."""
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, folder / file)
    places = {name: file for file, half in halves.items() for name in half} | (places or {})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_shards_that_are_written(tensors, tmp_path):
    """Files within the limit, except for that of a larger tensor; each is read as all of them."""
    sizes = sorted(tensor.nbytes for tensor in tensors.values())
    for limit in (10**9, sum(sizes) // 3, sizes[-2]):
        folder = tmp_path / str(limit)
        folder.mkdir()
        files = write_shards(tensors, folder / "all.safetensors", limit)
        assert sorted(folder.iterdir()) == files
        assert sum(path.stat().st_size > limit for path in files) <= 2 * (limit == sizes[-2])
        assert len(files) >= sum(sizes) / limit
        assert_same_tensors(read_checkpoint(files[-1]), tensors)
    assert [path.name for path in write_shards(tensors, tmp_path / "all.safetensors", 10**9)] == [
        "all-00001-of-00001.safetensors"
    ]


def test_published_names_in_shards(tensors, tmp_path):
    folder = sharded(tensors, tmp_path / "shards")
    for path in (folder, folder / "model.safetensors.index.json", folder / "model-00002-of-00002.safetensors"):
        assert_same_tensors(read_checkpoint(path), tensors)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a.weight": "model-00001-of-00002.safetensors"}, r"its shards lack 1 tensor \(a\.weight\): download"),
        ({"a": "other.safetensors"}, r"names 1 of 3 shards that are not beside it \(other\.safetensors\): add them"),
        ({"a": "../secret.safetensors"}, "not beside it"),
        ({"a": "/etc/passwd"}, "not beside it"),
        ({"a": 1}, "is no index of shards"),
        ({"a": None}, "is no index of shards"),
        ({"a": []}, "is no index of shards"),
    ],
)
def test_an_index_that_does_not_fit(tensors, tmp_path, places, message):
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    with pytest.raises(UserError, match=message):
        read_checkpoint(sharded(tensors, tmp_path / "shards", places))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [["a"]]}', "[" * 100_000])
def test_a_damaged_index(tensors, tmp_path, text):
    index = sharded(tensors, tmp_path / "shards") / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(UserError, match="is no index of shards"):
        read_checkpoint(index)


WRAPPED = {
    "DistributedDataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: name.replace("diffusion_model.", "diffusion_model._orig_mod."),
    "both": lambda name: f"module._orig_mod.{name}",
    "a part in DistributedDataParallel": lambda name: name.replace("diffusion_model.", "diffusion_model.module."),
    "Fabric": lambda name: f"_forward_module.module.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "a module of the training loop": lambda name: f"net.{name}",
    "the same under the name of a part": lambda name: f"model.{name}",
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_names(tensors, tmp_path, wrap):
    save_file({wrap(name): t for name, t in tensors.items()}, tmp_path / "m.safetensors")
    assert_same_tensors(read_checkpoint(tmp_path / "m.safetensors"), tensors)


def test_averages_of_a_compiled_model(tensors, tmp_path):
    averages = {name: t + 1 for name, t in tensors.items() if name.startswith(UNET)}
    stored = {
        f"model_ema.diffusion_model_orig_mod{name[len(UNET) :].replace('.', '')}": t for name, t in averages.items()
    }
    save_file({**tensors, **stored}, tmp_path / "m.safetensors")
    assert_same_tensors(read_checkpoint(tmp_path / "m.safetensors", ema=True), tensors | averages)


@pytest.mark.parametrize("keys", ["model", "module", "state_dict/model", "model_state_dict", "model/module"])
def test_nested_weights(tensors, tmp_path, keys):
    content = {f"module.{name}": t for name, t in tensors.items()}
    for key in reversed(keys.split("/")):
        content = {key: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "step": 3, "ema_rate": 0.5}
    torch.save(content, tmp_path / "m.pt")
    assert_same_tensors(read_checkpoint(tmp_path / "m.pt"), tensors)


class Whole(torch.nn.Linear):
    pass


def test_what_is_not_read_is_told(tmp_path):
    path = tmp_path / "m.pt"
    deep: dict = {"weight": torch.ones(1)}
    for _ in range(50):
        deep = {"model": deep}
    circle: dict = {}
    circle["model"] = circle
    for content, words in (
        ({"generator": {"w": torch.ones(1)}}, "where they are looked for, but under 'generator': save that part alone"),
        (Whole(2, 2), "a pickled object, whose code is not run"),
        (deep, "has no tensors"),
        (circle, "has no tensors"),
        ({"w": torch.ones(1), "module.w": torch.ones(1)}, r"1 tensor \(w\) twice"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=words):
            read_file(path)
