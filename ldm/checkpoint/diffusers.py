"""diffusers' folders, both ways: the layouts of Paint by Example and of Stable Diffusion v1.

The key maps are tables of (published, diffusers) names of modules; what is inside a pair has the same names on both
sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.files import StateDict, read_file
from ldm.models.diffusion.schedule import BUFFERS, NoiseSchedule
from ldm.util import UserError, listing

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TOWER = "cond_stage_model.transformer."
CLIP, TEXT = TOWER + "vision_model.", TOWER + "text_model."
MAPPER = "cond_stage_model.mapper."

UNET_TABLE = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
    ("middle_block.1", "mid_block.attentions.0"),
]
UNET_RESNET = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
]
VAE_TABLE = [
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    *[(f"{side}.conv_in", f"{side}.conv_in") for side in ("encoder", "decoder")],
    *[(f"{side}.conv_out", f"{side}.conv_out") for side in ("encoder", "decoder")],
    *[(f"{side}.norm_out", f"{side}.conv_norm_out") for side in ("encoder", "decoder")],
]
VAE_RESNET = [("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2")]
VAE_RESNET += [("nin_shortcut", "conv_shortcut")]
VAE_ATTENTION = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers < 0.15

ENCODER_TABLE = [
    (CLIP[:-1], "model.vision_model"),
    ("cond_stage_model.final_ln", "final_layer_norm"),
    ("proj_out", "proj_out"),
    ("learnable_vector", "uncond_vector"),
]
MAPPER_BLOCK = [  # attn.c_qkv, one matrix here, is to_q, to_k and to_v there
    ("ln_1", "norm1"),
    ("ln_2", "norm3"),
    ("attn.c_proj", "attn1.to_out.0"),
    ("mlp.c_fc", "ff.net.0.proj"),
    ("mlp.c_proj", "ff.net.2"),
]
TEXT_TABLE = [(TEXT[:-1], "text_model")]


def _inside(a: str, b: str, table: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"{a}.{x}", f"{b}.{y}") for x, y in table]


def _count(names: Iterable[str], before: str) -> int:
    """How many of before0, before1, ... begin a name."""
    names = list(names)
    n = 0
    while any(name.startswith(f"{before}{n}.") for name in names):
        n += 1
    return n


def _unet_table(levels: int, blocks: int, attends: Callable[[int], bool]) -> list[tuple[str, str]]:
    """levels and blocks per level of the UNet; attends(i): does the i-th level on the way up attend?"""
    table = list(UNET_TABLE)
    for i in (0, 1):
        table += _inside(f"middle_block.{2 * i}", f"mid_block.resnets.{i}", UNET_RESNET)
    for level in range(levels):
        for i in range(blocks + 1):
            down = f"input_blocks.{level * (blocks + 1) + i + 1}"
            if i == blocks:
                table.append((f"{down}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
            else:
                table += _inside(f"{down}.0", f"down_blocks.{level}.resnets.{i}", UNET_RESNET)
                table.append((f"{down}.1", f"down_blocks.{level}.attentions.{i}"))
            up = f"output_blocks.{level * (blocks + 1) + i}"
            table += _inside(f"{up}.0", f"up_blocks.{level}.resnets.{i}", UNET_RESNET)
            if attends(level):
                table.append((f"{up}.1", f"up_blocks.{level}.attentions.{i}"))
        table.append((f"{up}.{1 + attends(level)}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
    return table


def _vae_table(levels: int, blocks: int) -> list[tuple[str, str]]:
    table = list(VAE_TABLE)
    for side in ("encoder", "decoder"):
        for i in (0, 1):
            table += _inside(f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}", VAE_RESNET)
        table += _inside(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VAE_ATTENTION)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for i in range(blocks + 1):
            table += _inside(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", VAE_RESNET)
            table += _inside(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", VAE_RESNET)
        table.append((f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"))
        table.append((f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"))
    return table


def _encoder_table(blocks: int) -> list[tuple[str, str]]:
    table = list(ENCODER_TABLE)
    for i in range(blocks):
        table += _inside(f"cond_stage_model.mapper.resblocks.{i}", f"mapper.blocks.{i}", MAPPER_BLOCK)
    return table


def _rename(tensors: Mapping[str, Tensor], table: Iterable[tuple[str, str]], source: object) -> StateDict:
    """Translate each name by the longest module name of the table that it begins with."""
    modules = dict(table)
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        head, tail = name, ""
        while head and head not in modules:
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        if head:
            renamed[modules[head] + tail] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise UserError(f"{source}: {listing(unknown)} without a counterpart in the other format; name an SD v1 model")
    return renamed


def _reverse(table: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(b, a) for a, b in table]


def _read_component(folder: Path) -> StateDict | None:
    """The weights in one folder of a diffusers model; None where there is no such folder."""
    if not folder.is_dir():
        return None
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
        for variant in ("", ".fp16"):
            for suffix in (".safetensors", ".bin"):
                if (path := folder / f"{stem}{variant}{suffix}").is_file():
                    return read_file(path)
    raise UserError(f"checkpoint {folder}: holds no weights (diffusion_pytorch_model.safetensors, model.safetensors)")


def read_diffusers(folder: Path) -> StateDict:
    """The tensors of a folder under the published names, with the schedule that it describes."""
    unet, vae = _read_component(folder / "unet"), _read_component(folder / "vae")
    encoder, text = _read_component(folder / "image_encoder"), _read_component(folder / "text_encoder")
    if unet is None or vae is None:
        raise UserError(f"checkpoint {folder}: has no unet and vae folders; name a diffusers model")
    tensors: StateDict = {}

    def attends(level: int) -> bool:
        return f"up_blocks.{level}.attentions.0.norm.weight" in unet

    table = _unet_table(_count(unet, "down_blocks."), _count(unet, "down_blocks.0.resnets."), attends)
    tensors |= {UNET + name: tensor for name, tensor in _rename(unet, _reverse(table), folder / "unet").items()}

    for old, new in OLD_VAE_ATTENTION.items():
        vae = {name.replace(f"attentions.0.{old}.", f"attentions.0.{new}."): value for name, value in vae.items()}
    table = _vae_table(_count(vae, "encoder.down_blocks."), _count(vae, "encoder.down_blocks.0.resnets."))
    for name, tensor in _rename(vae, _reverse(table), folder / "vae").items():
        is_matrix = ".attn_1." in name and tensor.ndim == 2  # a 1x1 convolution here
        tensors[VAE + name] = tensor[:, :, None, None] if is_matrix else tensor

    if encoder is not None:
        if not any(name.startswith("model.vision_model.") for name in encoder):  # as saved by transformers 5
            encoder = {name.replace("model.", "model.vision_model.", 1) if name.startswith("model.") else name: value
                       for name, value in encoder.items()}  # fmt: skip
        blocks = _count(encoder, "mapper.blocks.")
        for i in range(blocks):
            for kind in ("weight", "bias"):
                parts = [encoder.pop(f"mapper.blocks.{i}.attn1.to_{x}.{kind}", None) for x in "qkv"]
                if all(part is not None for part in parts):
                    tensors[f"cond_stage_model.mapper.resblocks.{i}.attn.c_qkv.{kind}"] = torch.cat(parts)
        tensors |= _rename(encoder, _reverse(_encoder_table(blocks)), folder / "image_encoder")
    if text is not None:
        text = {name if name.startswith("text_model.") else f"text_model.{name}": value for name, value in text.items()}
        tensors |= _rename(text, _reverse(TEXT_TABLE), folder / "text_encoder")

    return tensors | _diffusers_schedule(folder / "scheduler" / "scheduler_config.json").buffers()


def _diffusers_schedule(path: Path) -> NoiseSchedule:
    try:
        config = json.loads(path.read_text())
        kind = config["beta_schedule"]
        schedule = NoiseSchedule.linear(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    except Exception as error:  # whatever JSON there is instead
        raise UserError(f"checkpoint {path}: gives no noise schedule ({error!r}); download it again") from error
    if kind != "scaled_linear":
        raise UserError(f"checkpoint {path}: its beta_schedule is {kind}, not scaled_linear; name an SD v1 model")
    return schedule


def _part(tensors: StateDict, prefix: str) -> StateDict:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def to_diffusers(tensors: StateDict, model) -> dict[str, Any]:
    """Tensors under the published names -> {relative path: tensors, or a JSON}. Shapes are the tensors'; `model`,
    built from the config, tells what they do not."""
    source = "checkpoint"
    tensors = {name: t for name, t in tensors.items() if name not in BUFFERS and not name.endswith("position_ids")}
    unet, vae = _part(tensors, UNET), _part(tensors, VAE)
    rest = {name: t for name, t in tensors.items() if not name.startswith((UNET, VAE))}
    is_paint_by_example = any(name.startswith(MAPPER) for name in rest)

    ops = sorted(int(name.split(".")[1]) for name in unet if name.startswith("input_blocks") and "0.op.weight" in name)
    blocks = ops[0] - 1 if ops else _count(unet, "input_blocks.") - 1
    levels = len(ops) + 1

    def attends(level: int) -> bool:
        return f"output_blocks.{level * (blocks + 1)}.1.norm.weight" in unet

    table = _unet_table(levels, blocks, attends)
    first = [1 + level * (blocks + 1) for level in range(levels)]
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    unet_config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": model.image_size,
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": unet["out.2.weight"].shape[0],
        "block_out_channels": [unet[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in first],
        "layers_per_block": blocks,
        "down_block_types": [
            "CrossAttnDownBlock2D" if attends(levels - 1 - level) else "DownBlock2D" for level in range(levels)
        ],
        "up_block_types": ["CrossAttnUpBlock2D" if attends(level) else "UpBlock2D" for level in range(levels)],
        "cross_attention_dim": unet["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": attention.heads,  # diffusers' name for the number of heads
    }
    levels, blocks = _count(vae, "encoder.down."), _count(vae, "encoder.down.0.block.")
    vae_config = {
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
    betas = model.schedule.betas
    scheduler_config = {
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": len(betas),
        "beta_schedule": "scaled_linear",
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    vae_tensors = {
        name: t[:, :, 0, 0] if "attentions.0.to_" in name and t.ndim == 4 else t
        for name, t in _rename(vae, _vae_table(levels, blocks), source).items()
    }
    weights = "diffusion_pytorch_model.safetensors"
    parts = {
        f"unet/{weights}": _rename(unet, table, source),
        "unet/config.json": unet_config,
        f"vae/{weights}": vae_tensors,
        "vae/config.json": vae_config,
        "scheduler/scheduler_config.json": scheduler_config,
    }
    index = {
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    if is_paint_by_example:
        parts |= _encoder_to_diffusers(rest, model.cond_stage_model, source)
        index |= {
            "_class_name": "PaintByExamplePipeline",
            "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "requires_safety_checker": False,
        }
    else:
        index |= {"_class_name": "StableDiffusionPipeline", "tokenizer": [None, None], "text_encoder": [None, None]}
        index |= {"image_encoder": [None, None], "requires_safety_checker": False}
        if rest:
            parts |= _text_to_diffusers(rest, source)
            index["text_encoder"] = ["transformers", "CLIPTextModel"]
    return parts | {"model_index.json": index}


def _encoder_to_diffusers(tensors: StateDict, encoder, source: object) -> dict[str, Any]:
    config = encoder.transformer.config
    blocks = len(encoder.mapper.resblocks)
    heads = encoder.mapper.resblocks[0].attn.heads if blocks else 1
    # diffusers builds its mapper by this rule
    if blocks != (config.num_hidden_layers + 1) // 5 or heads != 1:
        raise UserError(
            f"{source}: diffusers' mapper has one block for five CLIP layers and one head, this one {blocks} for "
            f"{config.num_hidden_layers} and {heads}; write .safetensors instead"
        )
    tensors = dict(tensors)
    qkv: StateDict = {}
    for i in range(blocks):
        for kind in ("weight", "bias"):
            joint = tensors.pop(f"cond_stage_model.mapper.resblocks.{i}.attn.c_qkv.{kind}")
            for x, part in zip("qkv", joint.chunk(3), strict=True):
                qkv[f"mapper.blocks.{i}.attn1.to_{x}.{kind}"] = part
    size = {"height": config.image_size, "width": config.image_size}
    return {
        "image_encoder/model.safetensors": _rename(tensors, _encoder_table(blocks), source) | qkv,
        "image_encoder/config.json": {
            **config.to_dict(),  # in full: transformers 5 reads it without CLIPVisionConfig's defaults
            "architectures": ["PaintByExampleImageEncoder"],
            "projection_dim": tensors["proj_out.weight"].shape[0],
        },
        # squashed to the tower's size, not cropped
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": size,
            "crop_size": size,
            "do_center_crop": False,
            "resample": 3,
        },
    }


def _text_to_diffusers(tensors: StateDict, source: object) -> dict[str, Any]:
    text = _rename(tensors, TEXT_TABLE, source)
    embedding = text["text_model.embeddings.token_embedding.weight"]
    return {
        "text_encoder/model.safetensors": text,
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": embedding.shape[0],
            "hidden_size": embedding.shape[1],
            "projection_dim": embedding.shape[1],
            "num_attention_heads": max(1, embedding.shape[1] // 64),  # CLIP's text towers have heads of 64 channels
            "num_hidden_layers": _count(text, "text_model.encoder.layers."),
            "intermediate_size": text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "max_position_embeddings": text["text_model.embeddings.position_embedding.weight"].shape[0],
        },
    }
