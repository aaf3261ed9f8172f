"""The weights that training starts from."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.files import StateDict, read_file
from ldm.checkpoint.load import load_weights
from ldm.checkpoint.names import CLIP, DETAIL, FIRST_CONV, MAPPER, TOWER, UNET, VAE
from ldm.checkpoint.surgery import deepen, widen
from ldm.models.base import TrainableModel
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import CLIP_VERSION
from ldm.util import UserError, instantiate_from_config, listing, own_or_shipped

LEVEL_BELOW, TOP_LEVEL = (f"{VAE}encoder.down.{level}.downsample.conv.weight" for level in (1, 2))
STABLE_DIFFUSION = Path("pretrained_models/sd-v1-4-modified-9channel.ckpt")


def initial_model(config: DictConfig, pretrained: str | None = None) -> TrainableModel:
    """The model that the config trains, with its initial weights.

    pretrained: a checkpoint of any format; "none" for random weights; None for the config's `model.pretrained_model`,
    or else STABLE_DIFFUSION.

    Raises UserError: the checkpoint is missing or does not fit, CLIP cannot be fetched."""
    section = config["model"]
    path = pretrained or section.get("pretrained_model") or STABLE_DIFFUSION
    if path == STABLE_DIFFUSION and not STABLE_DIFFUSION.exists():
        raise UserError(
            f"{STABLE_DIFFUSION}, from which training starts, does not exist: make it from sd-v1-4.ckpt with "
            "scripts/modify_checkpoints.py, or name another model with --pretrained_model (none: random weights)"
        )
    model = instantiate_from_config(section, TrainableModel)
    if str(path) == "none":
        return model
    given = read_checkpoint(own_or_shipped(path))
    if isinstance(model, LatentDiffusion):
        given = latent_diffusion_weights(model, given, section)
        load_weights(model, {name: tensor.clone() for name, tensor in given.items()}, f"checkpoint {path}")
    else:
        own = model.state_dict()
        if TOP_LEVEL in own and TOP_LEVEL not in given and LEVEL_BELOW in given:
            given = deepen(given, own)
        load_own_weights(model, given, path)
    return model


def latent_diffusion_weights(model: LatentDiffusion, given: StateDict, section: DictConfig) -> StateDict:
    """All weights of a LatentDiffusion, made from those of another model.

    From a Paint by Example model, all weights are used. From Stable Diffusion, the autoencoder and the UNet are used,
    with zeros for the new input channels (Yang et al. 2022, section 3.1); CLIP comes from the hub, or from the folder
    that the config names as its `version`; the mapper, proj_out and the learned vector keep their random weights. If
    the config's `model.prior` is false, so does the UNet.

    given: under the published names; section: the config's `model`."""
    own = model.state_dict()
    channels = own[FIRST_CONV].shape[1]
    if FIRST_CONV in given and given[FIRST_CONV].ndim == 4 and given[FIRST_CONV].shape[1] < channels:
        given = widen(given, channels)
    if "learnable_vector" not in given:  # Stable Diffusion
        clip = clip_weights(section)
        required = (UNET, VAE, TOWER) if clip else (UNET, VAE)  # never random: load_weights reports missing ones
        given = without_prefixes(own, *required) | with_prefixes(given, UNET, VAE) | clip
    if not hasattr(model.cond_stage_model, "mapper"):  # a model without the bottleneck has no mapper
        given = without_prefixes(given, MAPPER)
    given = given | with_prefixes(own, DETAIL)  # a detail path starts at zero
    if not section.get("prior", True):
        given = given | with_prefixes(own, UNET)
    return given


def load_own_weights(model: TrainableModel, given: StateDict, path: str | Path) -> None:
    """Load the weights whose names the model has and ignore all others. Raises UserError: one is missing or does not
    fit."""
    own = model.state_dict()
    missing = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if missing:
        raise UserError(
            f"checkpoint {path} lacks this model's {listing(missing)}: name another with --pretrained_model "
            "(none: random weights)"
        )
    model.load_state_dict({name: given[name] for name in own})


def with_prefixes(tensors: StateDict, *prefixes: str) -> StateDict:
    """The tensors whose names begin with one of the prefixes."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


def without_prefixes(tensors: StateDict, *prefixes: str) -> StateDict:
    """The tensors whose names begin with none of the prefixes."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def clip_weights(section: DictConfig) -> StateDict:
    """CLIP's image tower under the published names: from a file of open_clip's weights, a folder, or the hub and its
    cache. Empty if the config gives CLIP's size but no `version`. Raises UserError."""
    params = section["params"]["cond_stage_config"].get("params") or {}
    if (params.get("vision_config") or params.get("resnet")) and "version" not in params:
        return {}
    version = params.get("version", CLIP_VERSION)
    if params.get("resnet"):
        visual = with_prefixes(read_file(Path(version)), "visual.")
        return {TOWER + name: t for name, t in visual.items() if not name.endswith("num_batches_tracked")}
    from transformers import CLIPVisionModel
    from transformers.utils import logging

    if version.count("/") != 1 and not Path(version).is_dir():
        raise UserError(
            f"the folder of CLIP {version} does not exist: train that CLIP first, or correct the config's `version`"
        )
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists the unused weights of the text tower
    try:
        tower, info = CLIPVisionModel.from_pretrained(version, output_loading_info=True)
        if absent := [*info["missing_keys"], *info["mismatched_keys"]]:
            raise ValueError(f"{len(absent)} weights of its config are missing or of another shape")
    except Exception as error:  # the hub's client also raises exceptions of its HTTP library
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"CLIP {version} cannot be loaded from there or from the hub ({reason}): connect to the hub, or start "
            "from a model that contains CLIP: --pretrained_model checkpoints/model.ckpt"
        ) from error
    finally:
        logging.set_verbosity(level)
    return {CLIP + name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
