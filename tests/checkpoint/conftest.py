"""What the tests of checkpoints share: golden tensors, small diffusers models, a Lightning file."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import GOLDEN


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "model.safetensors")


def assert_same_tensors(a, b):
    """The same names, values to the bit."""
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def toy_config(golden_config):
    """The golden config with a CLIP tower of 9 layers and so, by diffusers' rule, a mapper of 2 blocks."""
    from omegaconf import OmegaConf

    return OmegaConf.merge(
        golden_config,
        {
            "model": {
                "params": {
                    "unet_config": {"params": {"num_res_blocks": 2}},
                    "cond_stage_config": {"params": {"mapper_layers": 2, "vision_config": {"num_hidden_layers": 9}}},
                }
            }
        },
    )


def toy_autoencoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )


def toy_scheduler():
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


@pytest.fixture(scope="module")
def pipe():
    """A random PaintByExamplePipeline, made by diffusers alone."""
    from diffusers import PaintByExamplePipeline, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    encoder_class = sys.modules[PaintByExamplePipeline.__module__].PaintByExampleImageEncoder
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=40,
        attention_head_dim=4,
    )
    vae = toy_autoencoder()
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=9,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=40,
    )
    scheduler = toy_scheduler()
    return PaintByExamplePipeline(
        vae=vae,
        image_encoder=encoder_class(vision),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipe_folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers") / "pipe"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    """A random Stable Diffusion v1 folder, made by diffusers alone, without a tokenizer."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(5)
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=99,
        projection_dim=64,
    )
    pipe = StableDiffusionPipeline(
        vae=toy_autoencoder(),
        text_encoder=CLIPTextModel(text),
        tokenizer=None,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=40,
            attention_head_dim=4,
        ),
        scheduler=toy_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("sd") / "sd"
    pipe.save_pretrained(folder)
    return folder


class ForeignCallback:
    """An object of another package in an old Lightning file."""

    def __init__(self):
        self.state = {"best": np.float64(0.5), "path": "epoch=3.ckpt"}


def write_lightning_file(tensors, path, module="pytorch_lightning_of_2022.callbacks"):
    """Writes a file as Lightning 1.x did: optimizer state, callbacks, numpy scalars, an argparse Namespace, and classes
    that cannot be imported here."""
    names = module.split(".")
    packages = [".".join(names[: i + 1]) for i in range(len(names))]
    for name in packages:
        sys.modules[name] = type(sys)(name)
    sys.modules[module].ForeignCallback = ForeignCallback
    ForeignCallback.__module__ = module
    try:
        torch.save(
            {
                "epoch": 39,
                "global_step": np.int64(7),
                "pytorch-lightning_version": "1.4.2",
                "state_dict": tensors,
                "callbacks": {ForeignCallback: ForeignCallback(), "list": [ForeignCallback()]},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(1000)}}, "param_groups": [{"lr": 1e-5}]}],
                "hyper_parameters": Namespace(a={1, 2}, dtype=torch.float16),
            },
            path,
        )
    finally:
        for name in packages:
            del sys.modules[name]


def pickled(content, tmp_path: Path) -> bytes:
    """What torch.save writes."""
    torch.save(content, tmp_path / "content")
    return (tmp_path / "content").read_bytes()
