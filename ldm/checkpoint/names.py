"""The names of tensors in checkpoints: the published ones, and tables that map them to diffusers' names.

A table is a list of (published, diffusers) names of modules. Inside a listed module the names are the same on both
sides, so `rename` translates the longest listed prefix of each name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ldm.checkpoint.files import StateDict
from ldm.util import UserError, listing

Table = list[tuple[str, str]]

# Prefixes of published names
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TOWER = "cond_stage_model.transformer."
CLIP, TEXT = TOWER + "vision_model.", TOWER + "text_model."
MAPPER = "cond_stage_model.mapper."
EMA = "model_ema."
TEACHER = "teacher."  # what a distillation run keeps beside its model
DETAIL = "detail."  # a detail path, in a run that trains one

FIRST_CONV = UNET + "input_blocks.0.0.weight"
POSITION_IDS = CLIP + "embeddings.position_ids"

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

IMAGE_ENCODER_TABLE = [
    (CLIP[:-1], "model.vision_model"),
    ("cond_stage_model.final_ln", "final_layer_norm"),
    ("proj_out", "proj_out"),
    ("learnable_vector", "uncond_vector"),
]
MAPPER_BLOCK = [  # attn.c_qkv, one matrix in published checkpoints, is to_q, to_k and to_v in diffusers
    ("ln_1", "norm1"),
    ("ln_2", "norm3"),
    ("attn.c_proj", "attn1.to_out.0"),
    ("mlp.c_fc", "ff.net.0.proj"),
    ("mlp.c_proj", "ff.net.2"),
]
TEXT_ENCODER_TABLE = [(TEXT[:-1], "text_model")]
TOWER_LAYER = [
    *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
    "layer_norm1",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
]


def unet_table(levels: int, blocks: int, attention: Sequence[bool]) -> Table:
    """blocks: residual blocks of a level on the way down. attention: for each level on the way up, whether it has
    attention."""
    table = list(UNET_TABLE)
    for i in (0, 1):
        table += _nested(f"middle_block.{2 * i}", f"mid_block.resnets.{i}", UNET_RESNET)
    for level in range(levels):
        for i in range(blocks + 1):
            down = f"input_blocks.{level * (blocks + 1) + i + 1}"
            if i == blocks:
                table.append((f"{down}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
            else:
                table += _nested(f"{down}.0", f"down_blocks.{level}.resnets.{i}", UNET_RESNET)
                table.append((f"{down}.1", f"down_blocks.{level}.attentions.{i}"))
            up = f"output_blocks.{level * (blocks + 1) + i}"
            table += _nested(f"{up}.0", f"up_blocks.{level}.resnets.{i}", UNET_RESNET)
            if attention[level]:
                table.append((f"{up}.1", f"up_blocks.{level}.attentions.{i}"))
        last = f"output_blocks.{level * (blocks + 1) + blocks}"
        table.append((f"{last}.{2 if attention[level] else 1}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
    return table


def vae_table(levels: int, blocks: int) -> Table:
    """blocks: residual blocks of a level of the encoder; the decoder has one more."""
    table = list(VAE_TABLE)
    for side in ("encoder", "decoder"):
        for i in (0, 1):
            table += _nested(f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}", VAE_RESNET)
        table += _nested(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VAE_ATTENTION)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for i in range(blocks + 1):
            table += _nested(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", VAE_RESNET)
            table += _nested(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", VAE_RESNET)
        table.append((f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"))
        table.append((f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"))
    return table


def image_encoder_table(blocks: int) -> Table:
    """blocks: of the mapper."""
    table = list(IMAGE_ENCODER_TABLE)
    for i in range(blocks):
        table += _nested(f"{MAPPER}resblocks.{i}", f"mapper.blocks.{i}", MAPPER_BLOCK)
    return table


def _nested(published: str, diffusers: str, table: Table) -> Table:
    return [(f"{published}.{a}", f"{diffusers}.{b}") for a, b in table]


def reverse(table: Table) -> Table:
    return [(b, a) for a, b in table]


def rename(tensors: Mapping[str, Tensor], table: Table, source: object) -> StateDict:
    """Replaces the longest prefix of each name that is in the table. Raises UserError naming tensors without one."""
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
        raise UserError(
            f"{source}: {listing(unknown)} cannot be translated to the other format: use a Stable Diffusion v1 model"
        )
    return renamed


def count_modules(names: Iterable[str], prefix: str) -> int:
    """How many of the modules prefix0, prefix1, ... have tensors."""
    names = list(names)
    n = 0
    while any(name.startswith(f"{prefix}{n}.") for name in names):
        n += 1
    return n
