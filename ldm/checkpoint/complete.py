"""Whether weights are those of a whole model, by the full list of names of a model of the same sizes: a check over the
names that are there would not notice what is missing."""

from __future__ import annotations

import torch

from ldm.checkpoint.files import StateDict
from ldm.checkpoint.names import CLIP, MAPPER, POSITION_IDS, TEXT, TOWER_LAYER, UNET, VAE, count_modules
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.encoders.xf import Transformer
from ldm.util import UserError, listing

Shapes = dict[str, tuple[int, ...]]
CONDITION = "cond_stage_model."
CURE = "use a file of the whole model"
BESIDE_THE_TOWER = ["learnable_vector", *(f"{layer}.{kind}" for layer in ("proj_out", "cond_stage_model.final_ln")
                                          for kind in ("weight", "bias"))]  # fmt: skip


def is_part_of_a_model(tensors: StateDict) -> bool:
    """Whether any of the names is one that Paint by Example or Stable Diffusion has."""
    return any(name.startswith((UNET, VAE, CONDITION, *BESIDE_THE_TOWER)) for name in tensors)


def require_complete(tensors: StateDict, source: object) -> None:
    """Raises UserError if weights of the UNet, the autoencoder or, where the model has one, of the text tower or the
    image encoder are missing. Their sizes are read from the tensors."""
    for part, prefix, shapes_of in (("UNet", UNET, _unet_shapes), ("autoencoder", VAE, _autoencoder_shapes)):
        given = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if not given:
            raise UserError(f"{source} has no {part}: none of its {len(tensors)} tensors is one of {prefix}*: {CURE}")
        try:
            shapes = shapes_of(given)
        except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError, UserError) as error:
            raise UserError(
                f"{source} has {len(given)} tensors of the {part}, too few to make it up ({error}): {CURE}"
            ) from error
        wrong = [name for name in shapes if name not in given or tuple(given[name].shape) != shapes[name]]
        if wrong:
            names = listing(prefix + name for name in wrong)
            raise UserError(f"{source} lacks, of the {len(shapes)} weights of the {part}, {names}: {CURE}")
    if missing := [name for name in _encoder_names(tensors) if name not in tensors]:
        raise UserError(f"{source} lacks {listing(missing)} of its encoder: {CURE}")


def _unet_shapes(given: StateDict) -> Shapes:
    """Of a UNet with the sizes of these tensors, whose names are those inside UNetModel."""
    width, channels = given["input_blocks.0.0.weight"].shape[:2]
    ends = [i for i in range(999) if f"input_blocks.{i}.0.op.weight" in given]
    blocks = ends[0] - 1 if ends else count_modules(given, "input_blocks.") - 1
    firsts = [1 + level * (blocks + 1) for level in range(len(ends) + 1)]
    middle = "middle_block.1.transformer_blocks."
    attends = [f"input_blocks.{block}.1.norm.weight" in given for block in firsts]
    with torch.device("meta"):
        network = UNetModel(
            in_channels=channels,
            out_channels=given["out.2.weight"].shape[0],
            model_channels=width,
            num_res_blocks=blocks,
            attention_resolutions=[2**level for level, has in enumerate(attends) if has],
            channel_mult=[given[f"input_blocks.{block}.0.out_layers.3.weight"].shape[0] // width for block in firsts],
            num_heads=1,
            context_dim=given[f"{middle}0.attn2.to_k.weight"].shape[1],
            transformer_depth=count_modules(given, middle),
        )
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def _autoencoder_shapes(given: StateDict) -> Shapes:
    """Of an autoencoder with the sizes of these tensors, whose names are those inside AutoencoderKL."""
    width, colours = given["encoder.conv_in.weight"].shape[:2]
    levels = range(count_modules(given, "encoder.down."))
    sizes = {
        "in_channels": colours,
        "out_ch": given["decoder.conv_out.weight"].shape[0],
        "ch": width,
        "ch_mult": [given[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] // width for level in levels],
        "num_res_blocks": count_modules(given, "encoder.down.0.block."),
        "z_channels": given["decoder.conv_in.weight"].shape[1],
    }
    with torch.device("meta"):
        network = AutoencoderKL(sizes, given["post_quant_conv.weight"].shape[1])
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def text_tower_names(layers: int) -> list[str]:
    """Of all weights of Stable Diffusion's text tower, without their prefix."""
    embeddings = [f"embeddings.{kind}_embedding.weight" for kind in ("token", "position")]
    return _tower_names(layers, "final_layer_norm") + embeddings


def count_layers(tensors: StateDict, prefix: str) -> int:
    """One more than the highest number of the modules prefix0, prefix1, ..., some of which may be missing."""
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix)), default=-1)


def _tower_names(layers: int, *norms: str) -> list[str]:
    parts = [*(f"encoder.layers.{i}.{part}" for i in range(layers) for part in TOWER_LAYER), *norms]
    return [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]


def _encoder_names(tensors: StateDict) -> list[str]:
    """Of all weights that the text tower or the image encoder must have. Of image towers, only transformers' kind is
    known by name."""
    names = []
    if any(name.startswith(TEXT) for name in tensors):
        names += [TEXT + name for name in text_tower_names(max(1, count_layers(tensors, f"{TEXT}encoder.layers.")))]
    if any(name.startswith(CLIP) and name != POSITION_IDS for name in tensors):
        tower = _tower_names(max(1, count_layers(tensors, f"{CLIP}encoder.layers.")), "pre_layrnorm", "post_layernorm")
        tower += [f"embeddings.{x}" for x in ("class_embedding", "patch_embedding.weight", "position_embedding.weight")]
        names += [CLIP + name for name in tower]
    if any(name.startswith((MAPPER, CLIP, *BESIDE_THE_TOWER)) for name in tensors):
        blocks = count_layers(tensors, f"{MAPPER}resblocks.")
        names += BESIDE_THE_TOWER
        names += [f"{MAPPER}{name}" for name in Transformer(1, blocks, 1).state_dict()]
    return names
