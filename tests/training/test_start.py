"""The weights that training starts from."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.training.start import initial_model
from ldm.util import UserError, load_config
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def tiny_config():
    return load_config(ROOT / "configs/tiny.yaml")


def test_training_starts_from_what_is_given(tiny_config, tiny, tmp_path):
    """From Stable Diffusion: the UNet, with zeros for new input channels, and the autoencoder. From Paint by Example:
    everything."""
    given = read_checkpoint(tiny)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    prior = {name: t for name, t in given.items() if name.startswith(("model.diffusion_model.", "first_stage_model."))}
    prior[first] = prior[first][:, :4].contiguous()
    write_checkpoint(prior, tmp_path / "sd.ckpt")
    torch.manual_seed(1)  # not what the given ones were drawn with
    own = initial_model(tiny_config, str(tmp_path / "sd.ckpt")).state_dict()
    assert not own[first][:, 4:].any() and torch.equal(own[first][:, :4], given[first][:, :4])
    assert all(torch.equal(own[name], t) for name, t in prior.items() if name != first)
    assert not torch.equal(own["proj_out.weight"], given["proj_out.weight"])
    own = initial_model(tiny_config, str(tiny)).state_dict()
    assert all(torch.equal(own[name], t) for name, t in given.items())
    without = OmegaConf.merge(tiny_config, {"model": {"prior": False}})
    own = initial_model(without, str(tmp_path / "sd.ckpt")).state_dict()
    assert not torch.equal(own[first][:, :4], given[first][:, :4])
    assert torch.equal(
        own["first_stage_model.decoder.conv_in.weight"], given["first_stage_model.decoder.conv_in.weight"]
    )


def test_clip_is_taken_from_a_folder(tiny_config, tiny, tmp_path):
    """The folder is written by transformers. A missing folder or missing weights are errors, never random weights."""
    sizes = tiny_config.model.params.cond_stage_config.params.vision_config
    torch.manual_seed(1)
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes))
    clip.save_pretrained(tmp_path / "clip")
    given = {
        name: t for name, t in read_checkpoint(tiny).items() if name.startswith(("model.diff", "first_stage_model."))
    }
    write_checkpoint(given, tmp_path / "sd.ckpt")
    config = OmegaConf.merge(
        tiny_config, {"model": {"params": {"cond_stage_config": {"params": {"version": str(tmp_path / "clip")}}}}}
    )
    own = initial_model(config, str(tmp_path / "sd.ckpt"))
    pictures = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        tokens = clip.eval()(pictures).last_hidden_state
        ours = own.cond_stage_model.transformer.eval()(pictures).last_hidden_state
    torch.testing.assert_close(ours, tokens)

    weights = load_file(tmp_path / "clip/model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("layers.3.mlp.fc1.weight")))
    save_file(weights, tmp_path / "clip/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"clip cannot be loaded.*1 weights of its config are missing"):
        initial_model(config, str(tmp_path / "sd.ckpt"))
    shutil.rmtree(tmp_path / "clip")
    with pytest.raises(UserError, match=r"folder of CLIP .*clip does not exist: train that CLIP"):
        initial_model(config, str(tmp_path / "sd.ckpt"))


def test_training_does_not_start_from_nothing_unasked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs/v1.yaml")
    with pytest.raises(UserError, match=r"9channel\.ckpt, from which .* does not exist: .*modify_checkpoints\.py"):
        initial_model(config)
