"""Adapters: their files, what each kind of change is, merging and stacking them, and the commands that take them."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm.checkpoint import load_model
from ldm.checkpoint.adapters import A, Adapter, B, merge, read_adapter, write_adapter
from ldm.checkpoint.names import UNET
from ldm.editing.metadata import read_settings
from ldm.pipeline import PaintByExample
from ldm.util import UserError
from tests.conftest import ROOT, edited_pixels

TINY = ROOT / "configs/tiny.yaml"
TARGETS = list(OmegaConf.load(ROOT / "configs/finetune_lora.yaml")["model"]["lora"]["target_modules"])
LAYER = UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def plain(tiny):
    return load_model(TINY, tiny)


@pytest.fixture
def adapter(plain):
    """Random factors for the attention layers that configs/finetune_lora.yaml names."""
    tensors = {}
    for name, weight in plain.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer.startswith(UNET) and name.endswith(".weight") and layer.endswith(tuple(f".{t}" for t in TARGETS)):
            tensors[layer + A] = torch.randn(8, weight.shape[1])
            tensors[layer + B] = 0.05 * torch.randn(weight.shape[0], 8)
    return Adapter(tensors, 8, 8)


@pytest.fixture
def adapter_file(adapter, tmp_path):
    write_adapter(adapter, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_scale_and_dtype(plain, adapter):
    tensors = plain.state_dict()
    weight = tensors[LAYER + ".weight"]
    assert torch.equal(merge(tensors, [(adapter, 0.0)])[LAYER + ".weight"], weight)
    assert not torch.equal(merge(tensors, [(adapter, 1)])[LAYER + ".weight"], weight)
    one, half = (merge(tensors, [(adapter, scale)])[LAYER + ".weight"] - weight for scale in (1.0, 0.5))
    torch.testing.assert_close(half, one / 2)
    assert (
        merge({name: t.half() for name, t in tensors.items()}, [(adapter, 1)])[LAYER + ".weight"].dtype == torch.float16
    )
    for scale in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="lora_scale"):
            merge(tensors, [(adapter, scale)])


def test_an_adapter_is_read_as_it_was_written(adapter, tmp_path):
    assert len(adapter.weights) == 7 * 6
    path = tmp_path / "new folder" / "lora.safetensors"
    write_adapter(adapter, path)
    read = read_adapter(path)
    assert (read.rank, read.alpha) == (8, 8)
    assert read.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(read.tensors[name], adapter.tensors[name]) for name in read.tensors)
    with safe_open(path, "pt") as file:
        assert {name: json.loads(file.metadata()[name]) for name in ("rank", "alpha")} == {"rank": 8, "alpha": 8}


def test_an_adapter_of_another_model_is_refused(plain, adapter):
    names = plain.state_dict()
    lacking = {name: tensor for name, tensor in names.items() if name != LAYER + ".weight"}
    with pytest.raises(UserError, match=r"the model lacks 1 tensor \(.*attn1.to_q.weight\)"):
        merge(lacking, [(adapter, 1)])
    other = {**names, LAYER + ".weight": torch.zeros(33, 32)}
    with pytest.raises(UserError, match=r"lora: it does not fit the model's .*attn1.to_q.weight \(33, 32\): use"):
        merge(other, [(adapter, 1)])


@pytest.mark.parametrize(
    ("change", "metadata", "words"),
    [
        ({}, {}, "has no rank and alpha"),
        ({}, {"rank": "8", "alpha": "eight"}, "has no rank and alpha"),
        ({}, {"rank": "[" * 100000, "alpha": "8"}, "has no rank and alpha"),
        ({}, {"rank": "0", "alpha": "8"}, "its rank is 0"),
        ({}, {"rank": "8.5", "alpha": "8"}, "its rank is 8.5"),
        ({}, {"rank": "8", "alpha": "NaN"}, "its alpha is nan"),
        ({}, {"rank": "8", "alpha": "[1]"}, r"its alpha is \[1\]"),
        ({}, {"rank": "4", "alpha": "8"}, "not a float matrix of rank 4"),
        ({LAYER + ".weight.delta": torch.zeros(2, dtype=torch.int32)}, None, "torch.int32"),
        ({LAYER + ".weight.singular": torch.zeros(2, 2)}, None, r"weight.singular is torch.float32 \(2, 2\)"),
        ({LAYER + ".lora_A.weight": None}, None, "attn1.to_q.lora_B.weight does not belong to a pair"),
        ({"other": torch.zeros(2)}, None, "other does not belong to a pair"),
        ({LAYER + ".lora_A.weight": torch.zeros(8)}, None, "not a float matrix of rank 8"),
        ({LAYER + ".lora_A.weight": torch.zeros(8, 32, dtype=torch.int32)}, None, "torch.int32"),
        ({LAYER + ".lora_A.weight": torch.full((8, 32), torch.inf)}, None, "not finite"),
        ("empty", None, "has no tensors"),
    ],
    ids=lambda x: "",
)
def test_a_bad_adapter_is_refused_by_name(adapter_file, tmp_path, change, metadata, words):
    tensors = {} if change == "empty" else load_file(adapter_file) | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    metadata = {"rank": "8", "alpha": "8"} if metadata is None else metadata
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(UserError, match=words) as error:
        read_adapter(tmp_path / "bad.safetensors")
    assert str(error.value).startswith(f"lora {tmp_path / 'bad.safetensors'}")


def test_a_damaged_adapter_is_refused_by_name(adapter_file, tmp_path):
    whole = adapter_file.read_bytes()
    for content in (b"", b"PK\3\4", b"\x80\x04.", whole[:100], whole[:-1], whole + b"x"):
        adapter_file.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged or not a \.safetensors file"):
            read_adapter(adapter_file)
    for path in (tmp_path, tmp_path / "nowhere", "/" + "x" * 300):
        with pytest.raises(UserError, match="cannot be read"):
            read_adapter(path)


def test_inference_uses_the_adapter(edit_example, tiny, adapter_file, tmp_path):
    runs = {"plain": [], "lora": ["--lora", adapter_file], "zero": ["--lora", adapter_file, "--lora_scale", 0]}
    for name, flags in runs.items():
        code, _, err = edit_example(tmp_path / name, tiny, *flags)
        assert code == 0, err
    assert np.array_equal(edited_pixels(tmp_path / "plain"), edited_pixels(tmp_path / "zero"))
    assert np.abs(edited_pixels(tmp_path / "plain") - edited_pixels(tmp_path / "lora")).max() > 0
    kept = read_settings(tmp_path / "lora/results/example_2_321.png")
    assert (kept["checkpoint"], kept["lora"], kept["lora_scale"]) == ("tiny.safetensors", adapter_file.name, 1.0)
    for flags, words in ((["--lora", tmp_path / "no"], "cannot be read"), (["--lora", tiny], "has no rank and alpha")):
        code, out, err = edit_example(tmp_path / "bad", tiny, *flags)
        assert code == 2 and words in err and not out and "Traceback" not in err
    code, _, err = edit_example(tmp_path / "bad", tiny, "--lora", adapter_file, "--lora_scale", "nan")
    assert code == 2 and "lora_scale is nan" in err


@pytest.mark.parametrize("output", ["merged.safetensors", "merged.ckpt", "merged"])
def test_convert_checkpoint_merges_an_adapter_in_every_format(script, tiny, adapter_file, tmp_path, output):
    code, _, err = script(
        "convert_checkpoint", tiny, tmp_path / output, "--lora", adapter_file, "--lora_scale", 0.5, "--config", TINY
    )
    assert code == 0, err
    expected = PaintByExample.load(TINY, tiny, "cpu", lora=adapter_file, lora_scale=0.5).model.state_dict()
    written = load_model(TINY, tmp_path / output).state_dict()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_an_adapter_is_not_converted_as_if_it_were_a_model(script, tiny, adapter_file, tmp_path):
    code, _, err = script("convert_checkpoint", adapter_file, tmp_path / "x.safetensors")
    assert code == 2 and "is an adapter, not a model" in err
    assert not (tmp_path / "x.safetensors").exists()
    before = adapter_file.read_bytes()
    code, _, err = script("convert_checkpoint", tiny, adapter_file, "--lora", adapter_file)
    assert code == 2 and "is the input itself" in err and adapter_file.read_bytes() == before


def test_an_adapter_needs_tensors():
    with pytest.raises(UserError, match="has no tensors"):
        Adapter({}, 8, 8)
