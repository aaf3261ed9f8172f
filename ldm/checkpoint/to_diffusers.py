"""Writes diffusers' folders, of Paint by Example and of Stable Diffusion v1; which names become which is in
from_diffusers.py. A folder of Paint by Example is written with the code that diffusers runs it by,
integrations/diffusers/."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.complete import count_layers, text_tower_names
from ldm.checkpoint.files import StateDict
from ldm.checkpoint.names import (
    MAPPER,
    TEXT,
    TEXT_ENCODER_TABLE,
    UNET,
    VAE,
    count_modules,
    image_encoder_table,
    rename,
    unet_table,
    vae_table,
)
from ldm.files import save_tensors
from ldm.models.diffusion.schedule import BUFFERS, NoiseSchedule
from ldm.modules.encoders.clip import ResNetTower
from ldm.util import UserError, listing, shipped

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.modules.encoders.modules import FrozenCLIPImageEmbedder

Json = dict[str, Any]
WEIGHTS = "diffusion_pytorch_model.safetensors"  # of the UNet and the autoencoder
SOURCE = "the checkpoint"  # in messages about what is to be written
COMPONENTS: Json = {  # of model_index.json: which library and class each folder needs
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}
ENCODER = "paint_by_example_image_encoder"  # not diffusers' own name, so that its own module never takes its place
PAINT_BY_EXAMPLE: Json = {
    "_class_name": ["pipeline", "PaintByExamplePipeline"],
    "image_encoder": [ENCODER, "PaintByExampleImageEncoder"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}
CODE = shipped("integrations/diffusers")
COPIES = {
    "pipeline.py": CODE / "pipeline.py",
    f"image_encoder/{ENCODER}.py": CODE / f"{ENCODER}.py",
    "README.md": CODE / "model_card.md",
}
STABLE_DIFFUSION: Json = {
    "_class_name": "StableDiffusionPipeline",
    "tokenizer": [None, None],
    "text_encoder": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}


@dataclass(frozen=True)
class DiffusersFiles:
    """The files of a diffusers folder, by their paths in it."""

    weights: dict[str, StateDict]
    configs: dict[str, Json]
    copies: dict[str, Path] = field(default_factory=dict)  # the pipeline's code and the model card

    def write(self, folder: Path) -> None:
        for name, tensors in self.weights.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            save_tensors(tensors, folder / name, {"format": "pt"})
        for name, config in self.configs.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(config, indent=2) + "\n")
        for name, file in self.copies.items():
            shutil.copyfile(file, folder / name)


def to_diffusers(tensors: StateDict, model: LatentDiffusion) -> DiffusersFiles:
    """Translates tensors under the published names, with or without the image encoder of Paint by Example.

    Sizes are read from the tensors. `model`, built from the config, gives what tensors do not show: numbers of heads,
    the picture's size, scale_factor, the noise schedule, the CLIP tower's settings. Raises UserError: names without a
    counterpart in diffusers, or a mapper that diffusers cannot build."""
    tensors = {name: t for name, t in tensors.items() if name not in BUFFERS and not name.endswith("position_ids")}
    rest = {name: t for name, t in tensors.items() if not name.startswith((UNET, VAE))}
    unet, unet_config = _unet_to_diffusers(_part(tensors, UNET), model)
    vae, vae_config = _vae_to_diffusers(_part(tensors, VAE), model)
    files = DiffusersFiles(
        {f"unet/{WEIGHTS}": unet, f"vae/{WEIGHTS}": vae},
        {
            "unet/config.json": unet_config,
            "vae/config.json": vae_config,
            "scheduler/scheduler_config.json": _scheduler_config(model.schedule),
        },
    )
    if any(not name.startswith(TEXT) for name in rest):
        encoder, encoder_config = _image_encoder_to_diffusers(rest, model.cond_stage_model)
        files.weights["image_encoder/model.safetensors"] = encoder
        files.configs["image_encoder/config.json"] = encoder_config
        preprocessor = _preprocessor_config(model.cond_stage_model.transformer.config.image_size)
        files.configs["feature_extractor/preprocessor_config.json"] = preprocessor
        files.configs["model_index.json"] = COMPONENTS | PAINT_BY_EXAMPLE
        files.copies.update(COPIES)
    else:
        files.configs["model_index.json"] = COMPONENTS | STABLE_DIFFUSION
        if rest:
            text, text_config = _text_encoder_to_diffusers(rest)
            files.weights["text_encoder/model.safetensors"] = text
            files.configs["text_encoder/config.json"] = text_config
            files.configs["model_index.json"]["text_encoder"] = ["transformers", "CLIPTextModel"]
    return files


def _part(tensors: StateDict, prefix: str) -> StateDict:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _unet_to_diffusers(unet: StateDict, model: LatentDiffusion) -> tuple[StateDict, Json]:
    downsamplers = sorted(
        int(name.split(".")[1]) for name in unet if name.startswith("input_blocks") and "0.op.weight" in name
    )
    blocks = downsamplers[0] - 1 if downsamplers else count_modules(unet, "input_blocks.") - 1
    levels = len(downsamplers) + 1
    attention = [f"output_blocks.{level * (blocks + 1)}.1.norm.weight" in unet for level in range(levels)]
    first_blocks = [1 + level * (blocks + 1) for level in range(levels)]
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": model.image_size,
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": unet["out.2.weight"].shape[0],
        "block_out_channels": [unet[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in first_blocks],
        "layers_per_block": blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in reversed(attention)],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in attention],
        "cross_attention_dim": unet["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        # diffusers' name for the number of heads
        "attention_head_dim": model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.heads,
    }
    if (depth := count_modules(unet, "middle_block.1.transformer_blocks.")) != 1:
        config["transformer_layers_per_block"] = depth
    return rename(unet, unet_table(levels, blocks, attention), SOURCE), config


def _vae_to_diffusers(vae: StateDict, model: LatentDiffusion) -> tuple[StateDict, Json]:
    levels, blocks = count_modules(vae, "encoder.down."), count_modules(vae, "encoder.down.0.block.")
    tensors = {
        name: t[:, :, 0, 0] if "attentions.0.to_" in name and t.ndim == 4 else t
        for name, t in rename(vae, vae_table(levels, blocks), SOURCE).items()
    }
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": vae["encoder.conv_in.weight"].shape[1],
        "out_channels": vae["decoder.conv_out.weight"].shape[0],
        "latent_channels": vae["post_quant_conv.weight"].shape[0],
        "block_out_channels": [vae[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)],
        "layers_per_block": blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": model.image_size * model.first_stage_model.factor,
        "scaling_factor": model.scale_factor,
    }
    return tensors, config


def _scheduler_config(schedule: NoiseSchedule) -> Json:
    return {
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": len(schedule.betas),
        "beta_schedule": "scaled_linear",
        "beta_start": float(schedule.betas[0]),
        "beta_end": float(schedule.betas[-1]),
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,  # for DDIM and others that take over this config
    }


def _image_encoder_to_diffusers(tensors: StateDict, encoder: FrozenCLIPImageEmbedder) -> tuple[StateDict, Json]:
    if isinstance(encoder.transformer, ResNetTower) or not encoder.bottleneck:
        kind = "no mapper" if not encoder.bottleneck else "a CLIP that is a residual network"
        raise UserError(f"{SOURCE} has {kind}, which diffusers' folders cannot hold: write .safetensors instead")
    clip = encoder.transformer.config
    blocks = len(encoder.mapper.resblocks)
    attention: Any = encoder.mapper.resblocks[0].attn if blocks else None
    heads = attention.heads if blocks else 1
    if blocks != (clip.num_hidden_layers + 1) // 5 or heads != 1:  # diffusers builds its mapper by this rule
        raise UserError(
            f"{SOURCE} has a mapper of {blocks} blocks and {heads} heads for {clip.num_hidden_layers} CLIP layers, but "
            "diffusers' mapper has one block for five layers, and one head: write .safetensors instead"
        )
    tensors, qkv = dict(tensors), {}
    for i in range(blocks):
        for kind in ("weight", "bias"):
            joint = tensors.pop(f"{MAPPER}resblocks.{i}.attn.c_qkv.{kind}")
            for x, part in zip("qkv", joint.chunk(3), strict=True):
                qkv[f"mapper.blocks.{i}.attn1.to_{x}.{kind}"] = part
    config = {
        **clip.to_dict(),  # every key, since transformers 5 reads it without CLIPVisionConfig's defaults
        "architectures": ["PaintByExampleImageEncoder"],
        "projection_dim": tensors["proj_out.weight"].shape[0],
    }
    return rename(tensors, image_encoder_table(blocks), SOURCE) | qkv, config


def _preprocessor_config(image_size: int) -> Json:
    """The reference is squashed to the CLIP tower's size, not cropped."""
    size = {"height": image_size, "width": image_size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": size,
        "crop_size": size,
        "do_center_crop": False,
        "resample": 3,
    }


def _text_encoder_to_diffusers(tensors: StateDict) -> tuple[StateDict, Json]:
    text = rename(tensors, TEXT_ENCODER_TABLE, SOURCE)
    layers = count_layers(text, "text_model.encoder.layers.")
    names = [f"text_model.{name}" for name in text_tower_names(max(1, layers))]
    if missing := [name for name in names if name not in text]:
        raise UserError(f"{SOURCE}'s text tower lacks {listing(missing)}: download it again")
    tokens, width = text["text_model.embeddings.token_embedding.weight"].shape
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": tokens,
        "hidden_size": width,
        "projection_dim": width,
        "num_attention_heads": max(1, width // 64),  # heads of CLIP's text towers have 64 channels
        "num_hidden_layers": layers,
        "intermediate_size": text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "max_position_embeddings": text["text_model.embeddings.position_embedding.weight"].shape[0],
    }
    return text, config
