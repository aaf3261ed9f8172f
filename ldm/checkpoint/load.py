"""Reads checkpoints of any format, loads them into a model, and writes them.

Inside this project a checkpoint is a dict of tensors under the *published names*, those of the released model.ckpt and
of Stable Diffusion's sd-v1-4.ckpt. Formats are recognised by a file's content, not its name:

| format           | read                                                 | written                         |
|------------------|------------------------------------------------------|---------------------------------|
| .ckpt .pt .pth   | pickled by torch.save, complete Lightning files too  | {"state_dict": tensors}         |
| .safetensors     | published names                                      | published names (the default)   |
| diffusers folder | Paint by Example and Stable Diffusion v1             | the same                        |
| shards           | of each of these (shards.py)                         | published names (write_shards)  |

Tensors may be nested ({"model": ...}, {"module": ...}) and their names wrapped (module., _orig_mod.).

Tensors are memory-mapped: those that are not used are not read from the disk. Reading a checkpoint never runs code from
it (files.py)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import nn

from ldm.checkpoint.files import StateDict, read_file
from ldm.checkpoint.from_diffusers import read_diffusers
from ldm.checkpoint.locate import DEFAULT_CONFIG
from ldm.checkpoint.names import CLIP, EMA, FIRST_CONV, POSITION_IDS, TEACHER, TEXT, UNET, VAE
from ldm.checkpoint.shards import Weights, weights_in
from ldm.checkpoint.to_diffusers import to_diffusers
from ldm.files import save_pickled, save_tensors, staging
from ldm.models.diffusion.schedule import BUFFERS
from ldm.storage import local, place
from ldm.util import UserError, instantiate_from_config, listing, load_config

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

Config = str | os.PathLike | DictConfig | dict
DERIVED = {*BUFFERS, POSITION_IDS}  # tensors that follow from the config
SCHEDULE_TOLERANCE = 5e-3  # a bfloat16 file's rounding of alphas_cumprod
MAX_PROBLEMS = 4  # listed in one message


def read_checkpoint(path: str | os.PathLike, ema: bool = False) -> StateDict:
    """Reads a checkpoint of any format: tensors under the published names, on the CPU, memory-mapped.

    Averaged weights beside the trained ones (model_ema.*) are left out; with `ema` they replace the trained ones. The
    weights of a teacher (teacher.*) are left out. Raises UserError: missing, truncated, not a checkpoint, no averaged
    weights."""
    path = local(path)
    try:
        tensors = _without_prefix(_read(path))
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}): check the path") from error
    except (RuntimeError, TypeError, IndexError) as error:  # tensors of shapes that cannot be translated
        raise UserError(f"checkpoint {path} is damaged ({str(error).splitlines()[0]}): download it again") from error
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEACHER)}
    averages = [name for name in tensors if name.startswith(EMA)]
    averaged = {name.replace("_orig_mod", ""): tensors.pop(name) for name in averages}  # of a compiled model
    if ema:
        # the average of model.diffusion_model.a.b is stored as model_ema.diffusion_modelab
        stored = {EMA + name.removeprefix("model.").replace(".", ""): name for name in tensors if name.startswith(UNET)}
        if not stored and averaged:
            raise UserError(
                f"checkpoint {path} has {len(averaged)} averaged weights, but none of the UNet's own, which name them: "
                "use a file of the whole model"
            )
        if missing := [name for name in stored if name not in averaged]:
            raise UserError(f"checkpoint {path} lacks averaged weights for {listing(missing)}: read it without --ema")
        tensors |= {name: averaged[average] for average, name in stored.items()}
    return add_position_ids(tensors)


def _read(path: Path) -> StateDict:
    """A file, one of a file's shards or their index, a diffusers folder, or a folder of one file or its shards."""
    weights = Weights.named(path)
    if path.is_dir():
        weights = None if (path / "unet").is_dir() else weights_in(path)
        return weights.read() if weights else read_diffusers(path)
    return weights.read() if weights and path.is_file() else read_file(path)


def _without_prefix(tensors: StateDict) -> StateDict:
    """Removes what a training loop puts before all published names, such as net.model.diffusion_model..."""
    if FIRST_CONV in tensors:
        return tensors
    prefixes = [name.removesuffix(FIRST_CONV) for name in tensors if name.endswith("." + FIRST_CONV)]
    prefix = min((prefix for prefix in prefixes if not prefix.endswith(TEACHER)), key=len, default="")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def add_position_ids(tensors: StateDict) -> StateDict:
    """Adds the image tower's position_ids, a constant in published checkpoints that later transformers do not store."""
    positions = tensors.get(CLIP + "embeddings.position_embedding.weight")
    if positions is not None and positions.ndim == 2:
        tensors.setdefault(POSITION_IDS, torch.arange(len(positions))[None])
    return tensors


def load_weights(model: LatentDiffusion, tensors: StateDict, source: object = "checkpoint") -> None:
    """Loads tensors under the published names as float32, strictly; float32 tensors are not copied.

    The noise schedule follows from the config, and a schedule in the checkpoint must agree with it. source: the
    checkpoint's name in messages. Raises UserError naming what is missing, unexpected or of another shape."""
    weights = {name: t for name, t in tensors.items() if name not in DERIVED}
    _require_fit(_weight_shapes(model), weights, source)
    own = model.alphas_cumprod.cpu()
    alphas = tensors.get("alphas_cumprod", own).float()
    if alphas.shape != own.shape or not torch.allclose(alphas, own, atol=SCHEDULE_TOLERANCE):
        raise UserError(
            f"{source} has another noise schedule than the config: correct timesteps, linear_start and linear_end"
        )
    model.load_state_dict({name: t.float() for name, t in weights.items()}, strict=False, assign=True)


def _weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in DERIVED}


def _require_fit(expected: Mapping[str, tuple[int, ...]], given: StateDict, source: object) -> None:
    """require_fit of a model."""
    cure = "give the config that it was made with (--config)"
    if FIRST_CONV in given and given[FIRST_CONV].ndim == 4 and given[FIRST_CONV].shape[1] == 4:
        cure = "it is a Stable Diffusion model with 4 input channels, so widen it by scripts/modify_checkpoints.py"
    require_fit(expected, given, source, "the config", cure)


def require_fit(
    expected: Mapping[str, tuple[int, ...]], given: StateDict, source: object, target: str, cure: str
) -> None:
    """expected: {name: shape}; source, target, cure: of the message. Raises UserError naming missing and unexpected
    tensors, and those of another shape or not of floats."""
    problems = []
    if missing := expected.keys() - given.keys():
        problems.append(f"it lacks {listing(missing)}")
    if unexpected := given.keys() - expected.keys():
        problems.append(f"it has {listing(unexpected)} too many")
    for name in sorted(expected.keys() & given.keys()):
        if tuple(given[name].shape) != expected[name]:
            problems.append(f"{name} is {tuple(given[name].shape)} instead of {expected[name]}")
        elif not given[name].is_floating_point():
            problems.append(f"{name} is {given[name].dtype} instead of float")
    if problems:
        more = f", and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise UserError(f"{source} does not fit {target} ({'; '.join(problems[:MAX_PROBLEMS])}{more}): {cure}")


def load_model(config: Config, path: str | os.PathLike, device: str | torch.device = "cpu") -> LatentDiffusion:
    """Builds the config's model with the weights of a checkpoint of any format, on `device`, in eval mode.

    config: a path or an OmegaConf node. The model takes over the file's memory, so a float32 file costs its size once.
    Raises UserError as read_checkpoint and load_weights do."""
    model = empty_model(config)
    load_weights(model, read_checkpoint(path), f"checkpoint {path}")
    return model.to(device).eval()


def empty_model(config: Config) -> LatentDiffusion:
    """The config's model without memory for its weights (on torch's meta device)."""
    config = load_config(config)
    with torch.device("meta"):
        model = instantiate_from_config(config["model"], nn.Module)
    if not hasattr(model, "learnable_vector"):
        raise UserError(
            f"config: target {config['model']['target']!r} is not a Paint by Example model: see configs/v1.yaml"
        )
    return model


def random_model(config: Config, device: str | torch.device = "cpu", seed: int = 0) -> LatentDiffusion:
    """The config's model with random weights, none of them zero, in eval mode: for tests and measurements."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = instantiate_from_config(load_config(config)["model"], nn.Module)
    for parameter in model.parameters():
        if not parameter.any():  # parameters that start as zero would hide most of the network
            nn.init.normal_(parameter, std=0.02)
    return model.to(device).eval().requires_grad_(False)


def write_checkpoint(
    tensors: StateDict, path: str | os.PathLike, config: Config = DEFAULT_CONFIG, to: str | None = None
) -> None:
    """Writes tensors under the published names atomically: a failure leaves earlier files as they were.

    path: .safetensors, .ckpt (.pt, .pth), or, without such a suffix, a diffusers folder, which must not exist yet.
    to: "diffusers" for a folder of any name. config: for a folder, gives what tensors do not show: heads, scale_factor,
    the CLIP tower's settings. Raises UserError: an unknown suffix, a folder that exists, tensors that do not fit the
    config, a full disk."""
    path = place(path)
    suffix = "" if to == "diffusers" else path.suffix.lower()
    if suffix in (".safetensors", ".ckpt", ".pt", ".pth"):
        with staging(path.parent) as folder:
            if path.is_dir():
                raise UserError(f"{path} is a folder: name a file")
            if suffix == ".safetensors":
                save_tensors(tensors, folder / path.name)
            else:
                save_pickled({"state_dict": tensors}, folder / path.name)
    elif re.fullmatch(r"\.[a-z]+", suffix):
        raise UserError(
            f"{path} ends in {suffix}, which is not a known format: use .safetensors, .ckpt, or no suffix for a "
            "diffusers folder"
        )
    elif path.exists():
        raise UserError(f"{path} exists already: remove it or name another folder")
    else:
        model = empty_model(config)
        _require_fit_of_folder(model, tensors)
        files = to_diffusers(tensors, model)
        with staging(path.parent) as folder:
            files.write(folder / path.name)


def _require_fit_of_folder(model: LatentDiffusion, tensors: StateDict) -> None:
    """Raises UserError if the tensors of a diffusers folder do not fit the model. The UNet may have any number of input
    channels; of Stable Diffusion, which has a text tower instead of the image encoder, only the UNet and the
    autoencoder are compared."""
    expected = _weight_shapes(model)
    given = {name: t for name, t in tensors.items() if name not in DERIVED and not name.startswith(TEXT)}
    if all(name.startswith((UNET, VAE)) for name in given):
        expected = {name: shape for name, shape in expected.items() if name.startswith((UNET, VAE))}
    if FIRST_CONV in given:
        expected[FIRST_CONV] = tuple(given[FIRST_CONV].shape)
    _require_fit(expected, given, "the checkpoint")
