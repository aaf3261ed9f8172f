"""However the tensors of a model are named, nested and split over files: all of them, or one sentence."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ldm.checkpoint.files import NESTS, WRAPPERS
from ldm.checkpoint.load import DERIVED, empty_model, load_weights, read_checkpoint, write_checkpoint
from ldm.checkpoint.names import EMA, FIRST_CONV, TEACHER, UNET
from ldm.util import UserError
from tests.conftest import GOLDEN

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = [
    FIRST_CONV,
    f"{UNET}input_blocks.0.0.bias",
    f"{UNET}out.2.weight",
    "first_stage_model.quant_conv.weight",
    "cond_stage_model.final_ln.weight",
    "proj_out.weight",
    "learnable_vector",
]


@st.composite
def models(draw) -> dict[str, torch.Tensor]:
    """A few tensors under published names, with the first convolution."""
    names = [FIRST_CONV, *draw(st.lists(st.sampled_from(NAMES[1:]), unique=True))]
    dtype = draw(st.sampled_from(DTYPES))
    return {name: (torch.arange(i, i + 6) / 7).reshape(2, 3).to(dtype) for i, name in enumerate(names)}


@st.composite
def wrapped(draw, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names that a training loop gives them."""
    prefix = draw(st.sampled_from(["", "module.", "_orig_mod.", "net.", "module._orig_mod.", "a.b."]))
    inner = draw(st.sampled_from(["", *WRAPPERS]))

    def name_of(name: str) -> str:
        return prefix + (name.replace("model.diffusion_model.", f"model.{inner}.diffusion_model.") if inner else name)

    return {name_of(name): tensor for name, tensor in tensors.items()}


def write(tensors: dict[str, torch.Tensor], path: Path, nests: list[str], legacy: bool) -> None:
    """nests: keys, from the outermost one, which only a pickle has."""
    if path.suffix == ".safetensors":
        save_file(tensors, path)
        return
    content = tensors
    for key in reversed(nests):
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@given(models(), st.data())
def test_one_file_gives_all_tensors(tensors, data):
    name = data.draw(
        st.sampled_from(["model.ckpt", "x.pt", "model.safetensors", "a b.bf16.safetensors", "pytorch_model.bin"])
    )
    nests = data.draw(st.lists(st.sampled_from(NESTS), max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        write(data.draw(wrapped(tensors)), Path(folder) / name, nests, data.draw(st.booleans()))
        assert_same(read_checkpoint(Path(folder) / name), tensors)


@given(models(), st.data())
def test_shards_give_all_tensors_or_say_which_file_is_missing(tensors, data):
    count = data.draw(st.integers(1, len(tensors)))
    stem = data.draw(st.sampled_from(["model", "diffusion_pytorch_model", "pytorch_model"]))
    variant = data.draw(st.sampled_from(["", ".bf16", ".fp16", ".non_ema"]))
    suffix = ".bin" if stem == "pytorch_model" else ".safetensors"
    early = data.draw(st.booleans())
    given_names = data.draw(wrapped(tensors))
    with tempfile.TemporaryDirectory() as name:
        folder, places = Path(name), {}
        for i in range(count):
            number = f"-{i + 1:05d}-of-{count:05d}"
            path = folder / f"{stem}{variant if early else ''}{number}{'' if early else variant}{suffix}"
            shard = dict(list(given_names.items())[i::count])
            write(shard, path, [], False)
            places |= dict.fromkeys(shard, path.name)
        index = folder / f"{stem}{suffix}.index{variant}.json"
        if data.draw(st.booleans()):
            index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        files = sorted(folder.glob(f"{stem}*{suffix}"))
        start = data.draw(st.sampled_from([folder, files[0], *([index] if index.exists() else [])]))
        assert_same(read_checkpoint(start), tensors)
        if count > 1:
            missing = data.draw(st.sampled_from(files))
            missing.unlink()
            with pytest.raises(UserError, match=r"lacks|names 1 of|cannot be read"):
                read_checkpoint(start)


@given(models(), st.data())
def test_averages_replace_all_of_the_unet_or_are_refused(tensors, data):
    unet = [name for name in tensors if name.startswith(UNET)]
    averaged = data.draw(st.lists(st.sampled_from(unet), unique=True))
    own = {EMA + name.removeprefix("model.").replace(".", ""): tensors[name] + 1 for name in averaged}
    others = {TEACHER + name: tensors[name] for name in unet} if data.draw(st.booleans()) else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        torch.save({"state_dict": tensors | own | others}, path)
        assert_same(read_checkpoint(path), tensors)
        if set(averaged) == set(unet):
            found = read_checkpoint(path, ema=True)
            assert_same(found, tensors | {name: tensors[name] + 1 for name in unet})
        else:
            with pytest.raises(UserError, match=f"lacks averaged weights for {len(unet) - len(averaged)} tensor"):
                read_checkpoint(path, ema=True)


@given(models(), st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tensors, data):
    name = data.draw(st.sampled_from(["model.ckpt", "model.safetensors"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(tensors, path, ["state_dict"], data.draw(st.booleans()))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content = content[:at]
        else:
            content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(min_size=1, max_size=4))
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def golden_tensors():
    return load_file(GOLDEN / "model.safetensors")


@pytest.fixture(scope="module")
def golden_model(golden_config):
    return empty_model(golden_config)


@given(data=st.data())
def test_a_model_with_tensors_missing_is_never_loaded(golden_model, golden_tensors, data):
    weights = sorted(golden_tensors.keys() - DERIVED)
    missing = set(data.draw(st.lists(st.sampled_from(weights), unique=True, min_size=1, max_size=5)))
    rest = {name: tensor for name, tensor in golden_tensors.items() if name not in missing}
    with pytest.raises(UserError, match=f"lacks {len(missing)} tensor"):
        load_weights(golden_model, rest)


@given(models(), st.data())
def test_what_is_written_is_read_back(tensors, data):
    stem = data.draw(st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60),
        st.integers(200, 260).map(lambda n: "x" * n),
    ))  # fmt: skip
    shared = data.draw(st.booleans())
    if shared:  # tied tensors
        tensors = tensors | {"tied.weight": tensors[FIRST_CONV]}
    name = stem + data.draw(st.sampled_from([".safetensors", ".ckpt", ".pt"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        try:
            write_checkpoint(tensors, path)
        except UserError as error:
            assert len(name.encode()) > 255 and "\n" not in str(error)
            assert not list(Path(folder).iterdir())
        else:
            assert [child.name for child in Path(folder).iterdir()] == [name]
            assert_same(read_checkpoint(path), tensors)
