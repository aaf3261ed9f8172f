"""The weights that training starts from."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.files import StateDict, read_file
from ldm.checkpoint.load import load_weights
from ldm.checkpoint.names import CLIP, FIRST_CONV, MAPPER, TOWER, UNET, VAE
from ldm.checkpoint.surgery import widen
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import CLIP_VERSION
from ldm.util import UserError, instantiate_from_config, listing

STABLE_DIFFUSION = Path("pretrained_models/sd-v1-4-modified-9channel.ckpt")


def initial_model(config: DictConfig, pretrained: str | None = None) -> nn.Module:
    """What the config trains, with the weights that training starts from.

    pretrained: a checkpoint of any format; None: what the config's `model.pretrained_model` says, or STABLE_DIFFUSION;
    "none": random weights. For a LatentDiffusion: of a Paint by Example model all is taken. Of Stable Diffusion the
    autoencoder and the UNet are, with zeros for the new input channels (Yang et al. 2022, section 3.1); CLIP comes from
    the hub, or the folder that the config names as its `version`, and the mapper, proj_out and the learned vector start
    from random numbers, as does the UNet where `model.prior` is false.

    Raises UserError: no such checkpoint, one that does not fit, CLIP cannot be fetched."""
    section = config["model"]
    path = pretrained or section.get("pretrained_model") or STABLE_DIFFUSION
    if path == STABLE_DIFFUSION and not STABLE_DIFFUSION.exists():
        raise UserError(
            f"{STABLE_DIFFUSION}: is not there, and training starts from it; make it of sd-v1-4.ckpt with "
            "scripts/modify_checkpoints.py, or name another model with --pretrained_model (none: random weights)"
        )
    model = instantiate_from_config(section, nn.Module)
    if str(path) == "none":
        return model
    own, given = model.state_dict(), read_checkpoint(path)
    if not isinstance(model, LatentDiffusion):
        unfit = [name for name in own if name not in given or given[name].shape != own[name].shape]
        if unfit:
            raise UserError(
                f"checkpoint {path}: has not this model's {listing(unfit)}; name another with --pretrained_model "
                "(none: random weights)"
            )
        model.load_state_dict({name: given[name] for name in own})
        return model
    channels = own[FIRST_CONV].shape[1]
    if FIRST_CONV in given and given[FIRST_CONV].ndim == 4 and given[FIRST_CONV].shape[1] < channels:
        given = widen(given, channels)
    if "learnable_vector" not in given:
        clip = _clip(section)
        known = (UNET, VAE, TOWER) if clip else (UNET, VAE)  # what these lack is missed, not made up
        given = _rest(own, *known) | _part(given, UNET, VAE) | clip
    if not hasattr(model.cond_stage_model, "mapper"):  # without the bottleneck there is none
        given = {name: tensor for name, tensor in given.items() if not name.startswith(MAPPER)}
    if not section.get("prior", True):
        given |= _part(own, UNET)
    load_weights(model, {name: tensor.clone() for name, tensor in given.items()}, f"checkpoint {path}")
    return model


def _part(tensors: StateDict, *prefixes: str) -> StateDict:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


def _rest(tensors: StateDict, *prefixes: str) -> StateDict:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def _clip(section: DictConfig) -> StateDict:
    """CLIP's image tower under the published names: from a file of open_clip's weights, a folder, the hub or its cache;
    nothing where the config gives its size and does not name one. Raises UserError."""
    params = section["params"]["cond_stage_config"].get("params") or {}
    if (params.get("vision_config") or params.get("resnet")) and "version" not in params:
        return {}
    version = params.get("version", CLIP_VERSION)
    if params.get("resnet"):
        visual = {name: tensor for name, tensor in read_file(Path(version)).items() if name.startswith("visual.")}
        return {TOWER + name: t for name, t in visual.items() if not name.endswith("num_batches_tracked")}
    from transformers import CLIPVisionModel
    from transformers.utils import logging

    if version.count("/") != 1 and not Path(version).is_dir():
        raise UserError(f"CLIP {version}: there is no such folder; train it, or correct the config's `version`")
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists the weights of the text tower, which nobody asked for
    try:
        tower, info = CLIPVisionModel.from_pretrained(version, output_loading_info=True)
        if absent := [*info["missing_keys"], *info["mismatched_keys"]]:
            raise ValueError(f"it has not all weights of its config, {len(absent)} are missing or of another shape")
    except Exception as error:  # the hub's client raises those of its HTTP library as they are
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"CLIP {version}: could not be fetched from the hub ({reason}); connect to it, or start from a model that "
            "holds CLIP: --pretrained_model checkpoints/model.ckpt"
        ) from error
    finally:
        logging.set_verbosity(level)
    return {CLIP + name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
