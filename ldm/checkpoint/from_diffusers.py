"""Reads diffusers' folders, of Paint by Example and of Stable Diffusion v1.

| folder                           | published names                               |
|----------------------------------|-----------------------------------------------|
| unet/                            | model.diffusion_model.*                       |
| vae/                             | first_stage_model.*                           |
| image_encoder/                   | cond_stage_model.*, proj_out, learnable_vector |
| text_encoder/ (Stable Diffusion) | cond_stage_model.transformer.text_model.*     |
| scheduler/                       | the noise schedule: betas, alphas_cumprod, ... |

How their names map to each other is in names.py; to_diffusers.py is the way back."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ldm.checkpoint.files import StateDict
from ldm.checkpoint.names import (
    MAPPER,
    OLD_VAE_ATTENTION,
    TEXT_ENCODER_TABLE,
    UNET,
    VAE,
    count_modules,
    image_encoder_table,
    rename,
    reverse,
    unet_table,
    vae_table,
)
from ldm.checkpoint.shards import weights_in
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError


def read_diffusers(folder: Path) -> StateDict:
    """The tensors of a folder under the published names, with the noise schedule that its scheduler describes.

    Raises UserError: weights are missing, cannot be read or cannot be translated."""
    unet, vae = _read_component(folder / "unet"), _read_component(folder / "vae")
    image_encoder, text_encoder = _read_component(folder / "image_encoder"), _read_component(folder / "text_encoder")
    if unet is None or vae is None:
        raise UserError(f"checkpoint {folder} has no unet and vae folders: use the folder of a diffusers model")
    tensors = _unet_from_diffusers(unet, folder / "unet") | _vae_from_diffusers(vae, folder / "vae")
    if image_encoder is not None:
        tensors |= _image_encoder_from_diffusers(image_encoder, folder / "image_encoder")
    if text_encoder is not None:
        tensors |= _text_encoder_from_diffusers(text_encoder, folder / "text_encoder")
    return tensors | _read_schedule(folder / "scheduler" / "scheduler_config.json").buffers()


def _read_component(folder: Path) -> StateDict | None:
    """The weights in one folder of a diffusers model, or None if the folder does not exist."""
    if not folder.is_dir():
        return None
    if not (weights := weights_in(folder)):
        raise UserError(
            f"checkpoint {folder} has no weights: add diffusion_pytorch_model.safetensors or model.safetensors"
        )
    return weights.read()


def _unet_from_diffusers(unet: StateDict, folder: Path) -> StateDict:
    levels, blocks = count_modules(unet, "down_blocks."), count_modules(unet, "down_blocks.0.resnets.")
    attention = [f"up_blocks.{level}.attentions.0.norm.weight" in unet for level in range(levels)]
    table = unet_table(levels, blocks, attention)
    return {UNET + name: tensor for name, tensor in rename(unet, reverse(table), folder).items()}


def _vae_from_diffusers(vae: StateDict, folder: Path) -> StateDict:
    for old, new in OLD_VAE_ATTENTION.items():
        vae = {name.replace(f"attentions.0.{old}.", f"attentions.0.{new}."): value for name, value in vae.items()}
    table = vae_table(count_modules(vae, "encoder.down_blocks."), count_modules(vae, "encoder.down_blocks.0.resnets."))
    tensors = {}
    for name, tensor in rename(vae, reverse(table), folder).items():
        is_matrix = ".attn_1." in name and tensor.ndim == 2  # in published checkpoints it is a 1x1 convolution
        tensors[VAE + name] = tensor[:, :, None, None] if is_matrix else tensor
    return tensors


def _image_encoder_from_diffusers(encoder: StateDict, folder: Path) -> StateDict:
    if not any(name.startswith("model.vision_model.") for name in encoder):  # saved by transformers 5
        encoder = {
            name.replace("model.", "model.vision_model.", 1) if name.startswith("model.") else name: value
            for name, value in encoder.items()
        }
    blocks = count_modules(encoder, "mapper.blocks.")
    tensors = {}
    for i in range(blocks):
        for kind in ("weight", "bias"):
            found = [encoder.pop(f"mapper.blocks.{i}.attn1.to_{x}.{kind}", None) for x in "qkv"]
            parts = [part for part in found if part is not None]
            if len(parts) == 3:
                tensors[f"{MAPPER}resblocks.{i}.attn.c_qkv.{kind}"] = torch.cat(parts)
    return tensors | rename(encoder, reverse(image_encoder_table(blocks)), folder)


def _text_encoder_from_diffusers(text: StateDict, folder: Path) -> StateDict:
    prefix = "text_model."
    text = {name if name.startswith(prefix) else prefix + name: value for name, value in text.items()}
    return rename(text, reverse(TEXT_ENCODER_TABLE), folder)


def _read_schedule(path: Path) -> NoiseSchedule:
    try:
        config = json.loads(path.read_text())
        kind = config["beta_schedule"]
        schedule = NoiseSchedule.linear(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    except Exception as error:  # damaged JSON can make Python raise anything
        raise UserError(f"checkpoint {path} has no noise schedule ({error!r}): download it again") from error
    if kind != "scaled_linear":
        raise UserError(
            f"checkpoint {path} has beta_schedule {kind}, not scaled_linear: use a Stable Diffusion v1 model"
        )
    return schedule
