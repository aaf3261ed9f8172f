"""A file that is not a whole model is told, by the full list of names, before anything is written."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.complete import require_complete
from ldm.checkpoint.load import random_model
from ldm.checkpoint.names import CLIP, EMA, MAPPER, TEXT, UNET, VAE
from ldm.checkpoint.surgery import halve
from ldm.util import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize("config", ["configs/tiny.yaml", "configs/mini/paint_by_example.yaml"])
def test_whole_models_of_other_sizes(config):
    require_complete(random_model(ROOT / config).state_dict(), "x")


def test_whole_models(tensors, sd_folder, pipe_folder):
    for whole in (tensors, read_checkpoint(sd_folder), read_checkpoint(pipe_folder)):
        require_complete(whole, "x")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (UNET, r"has no UNet: none of its \d+ tensors is one of model\.diffusion_model\.\*: use a file"),
        (VAE, "has no autoencoder: none of its"),
        (UNET + "input_blocks", r"tensors of the UNet, too few to make it up"),
        (UNET + "output_blocks", r"lacks, of the 208 weights of the UNet, \d+ tensors \("),
        (UNET + "output_blocks.2", "of the 208 weights of the UNet, "),
        (UNET + "time_embed.2.bias", r"1 tensor \(model\.diffusion_model\.time_embed\.2\.bias\): use a file"),
        (VAE + "decoder.up.0", "weights of the autoencoder, "),
        (VAE + "quant_conv", r"weights of the autoencoder, 2 tensors"),
        (MAPPER + "resblocks.1", "lacks 12 tensors"),
        (MAPPER + "resblocks.4.mlp.c_fc.bias", "lacks 1 tensor"),
        ("learnable_vector", "lacks 1 tensor"),
        (CLIP + "encoder.layers.0", "lacks 16 tensors"),
        (CLIP + "post_layernorm", "lacks 2 tensors"),
    ],
)
def test_what_is_missing_is_told_by_every_command(tensors, tmp_path, script, lost, message):
    path, whole = tmp_path / "m.safetensors", tmp_path / "whole.safetensors"
    save_file({name: t for name, t in tensors.items() if not name.startswith(lost)}, path)
    with pytest.raises(UserError, match=message):
        require_complete(read_checkpoint(path), path)
    if lost in (UNET, UNET + "output_blocks.2"):
        save_file(tensors, whole)
        difference = ("modify_checkpoints", "--add_difference", "--output", tmp_path / "out.ckpt")
        commands = [("convert_checkpoint", path, tmp_path / "out.safetensors", *flag) for flag in ((), ("--half",))]
        commands += [("modify_checkpoints", "--input", path, "--output", tmp_path / "out.ckpt")]
        commands += [(*difference, "--a", path, "--b", whole, "--c", whole)]
        commands += [(*difference, "--a", whole, "--b", whole, "--c", path)]
        for command in commands:
            code, out, err = script(*command)
            assert code == 2 and "UNet" in err and "wrote" not in out and len(err.splitlines()) == 1, err
        assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "whole.safetensors"]


def test_a_text_tower_that_lost_a_layer(sd_folder):
    lost = f"{TEXT}encoder.layers.0."
    with pytest.raises(UserError, match=r"lacks 16 tensors"):
        require_complete({name: t for name, t in read_checkpoint(sd_folder).items() if not name.startswith(lost)}, "x")


def test_averages_without_the_weights_that_they_are_of(tensors, tmp_path, script):
    averages = {EMA + name.removeprefix("model.").replace(".", ""): t for name, t in tensors.items() if UNET in name}
    path = tmp_path / "m.safetensors"
    save_file({name: t for name, t in tensors.items() if UNET not in name} | averages, path)
    code, out, err = script("convert_checkpoint", path, tmp_path / "out.safetensors", "--ema")
    assert code == 2 and "has 208 averaged weights, but none of the UNet's own" in err and "wrote" not in out
    code, _, err = script("convert_checkpoint", path, tmp_path / "out.safetensors")
    assert code == 2 and "has no UNet" in err
    save_file({name: t for name, t in tensors.items() if UNET not in name}, path)
    code, _, err = script("convert_checkpoint", path, tmp_path / "out.safetensors", "--ema")
    assert code == 2 and "has no UNet" in err


def test_half_precision_that_would_be_infinite():
    assert torch.equal(halve({"a": torch.tensor([65504.0, float("inf")])})["a"].isinf(), torch.tensor([False, True]))
    with pytest.raises(UserError, match=r"1 tensor \(a\) would be infinite in float16"):
        halve({"a": torch.tensor([1e5]), "b": torch.ones(1)})


def test_other_networks_are_converted_as_they_are(script, tmp_path):
    """The small world's oracle has no part of the model, and cannot be written as a diffusers folder."""
    oracle, half = tmp_path / "oracle.safetensors", tmp_path / "half.safetensors"
    save_file({"oracle.head.weight": torch.rand(3, 2)}, oracle)
    code, _, err = script("convert_checkpoint", "--half", oracle, half)
    assert code == 0, err
    assert load_file(half)["oracle.head.weight"].dtype == torch.float16
    for words in (["--to", "diffusers"], []):
        code, _, err = script("convert_checkpoint", *words, oracle, tmp_path / "folder")
        assert code == 2 and len(err.splitlines()) == 1 and not (tmp_path / "folder").exists(), err
