"""Every config, the published one among them."""

import importlib.metadata
import re
import sys

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ldm.checkpoint.load import empty_model
from ldm.models.base import TrainableModel
from ldm.training.run import MONITORED
from ldm.util import UserError, get_obj_from_str, instantiate_from_config
from tests.conftest import ROOT

CONFIGS = [path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.parent.name != "augmentation"]


def whole(path):
    """A config as it is used: one that names no UNet, as those of configs/ablation, goes over configs/v1.yaml, or, in
    configs/mini, over the one there."""
    config = OmegaConf.load(path)
    if path.stem == "first_stage_128":
        return OmegaConf.merge(OmegaConf.load(ROOT / "configs/mini/first_stage.yaml"), config)
    parts = ("first_stage", "clip", "oracle", "recogniser")
    if path.stem in parts or OmegaConf.select(config, "model.params.unet_config.target"):
        return config
    base = "configs/mini/paint_by_example.yaml" if path.parent.name == "mini" else "configs/v1.yaml"
    return OmegaConf.merge(OmegaConf.load(ROOT / base), config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path):
    config = whole(path)
    if "unet_config" not in config["model"]["params"]:
        assert instantiate_from_config(config["model"], TrainableModel).monitor in MONITORED
        return
    model = empty_model(config)
    assert model.learnable_vector.shape == (1, 1, model.model.diffusion_model.context_dim)
    assert model.proj_out.in_features == model.cond_stage_model.width


def test_v1_holds_the_published_values():
    """The published file's values, and its target with a hyphen."""
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/v1.yaml"))
    params = config["model"]["params"]
    assert config["model"]["base_learning_rate"] == 1e-5
    assert (params["linear_start"], params["linear_end"], params["timesteps"]) == (0.00085, 0.012, 1000)
    assert (params["image_size"], params["channels"], params["scale_factor"]) == (64, 4, 0.18215)
    assert (params["u_cond_percent"], params["use_ema"]) == (0.2, False)
    assert params["scheduler_config"]["params"] == {
        "warm_up_steps": [10000],
        "cycle_lengths": [10000000000000],
        "f_start": [1e-6],
        "f_max": [1.0],
        "f_min": [1.0],
    }
    assert "params" not in params["cond_stage_config"]
    assert config["data"]["params"]["train"]["target"] == "ldm.data.open-images.OpenImageDataset"
    assert config["lightning"]["trainer"]["gpus"] == "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_target_of_every_config_exists(path):
    targets = set(re.findall(r"target: (\S+)", OmegaConf.to_yaml(whole(path))))
    for target in targets:
        get_obj_from_str(target)


def test_targets():
    assert get_obj_from_str("ldm.models.diffusion.ddpm.LatentDiffusion").__name__ == "LatentDiffusion"
    for config, words in (
        ({"target": "ldm.nowhere.X"}, "cannot be found"),
        ({"target": "Nothing"}, "cannot be found"),
        ({"params": {}}, "has no 'target'"),
        ({"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4}}, "ddconfig"),
        ({"target": None}, "cannot be found"),
        ({"target": "ldm.models.autoencoder.AutoencoderKL", "params": "x"}, "has no 'target' and 'params'"),
        (5, "has no 'target'"),
        ({"target": "os.system", "params": {"command": "false"}}, "'os.system' is not a Module"),
        ({"target": "subprocess.Popen", "params": {"args": "false"}}, "'subprocess.Popen' is not a Module"),
    ):
        with pytest.raises(UserError, match=words):
            instantiate_from_config(config, torch.nn.Module)
    for config in (
        {"model": {"target": "torch.nn.Identity"}},
        {"model": 5},
        {},
        OmegaConf.create("model: ${nowhere}"),
        OmegaConf.create("model: {target: '${nowhere}'}"),
    ):
        with pytest.raises(UserError, match="config"):
            empty_model(config)


def test_a_hyphen_in_a_module_is_an_underscore(monkeypatch):
    module = type(sys)("some_module")
    module.Thing = dict
    monkeypatch.setitem(sys.modules, "some_module", module)
    assert get_obj_from_str("some-module.Thing") is dict


def test_environment_and_setup_agree():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    assert "python=3.11" in environment["dependencies"] and {"pip": ["-e .[all]"]} in environment["dependencies"]
    builds = [d.name for d in importlib.metadata.distributions() if (d.name or "").lower().startswith("opencv")]
    assert len(set(builds)) == 1, builds  # two would overwrite each other
