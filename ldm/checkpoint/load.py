"""Checkpoints, in and out. Reading one never runs code from it.

Inside this project a checkpoint is a dict of tensors under the *published names*, those of the released model.ckpt and
of Stable Diffusion's sd-v1-4.ckpt. Files are recognised by content:

| format             | read                                                | written                       |
|--------------------|-----------------------------------------------------|-------------------------------|
| .ckpt .pt .pth     | pickled by torch.save, Lightning's with all they hold | {"state_dict": tensors}     |
| .safetensors       | published names                                     | published names (the default) |
| diffusers folder   | Paint-by-Example and Stable Diffusion v1 layouts    | the same                      |

Tensors are memory-mapped: what is not used is not read. How a file is read is in files.py, how names map to
diffusers' in diffusers.py; others read models through this module alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ldm.checkpoint.diffusers import CLIP, MAPPER, UNET, VAE, read_diffusers, to_diffusers
from ldm.checkpoint.files import StateDict, read_file
from ldm.checkpoint.locate import DEFAULT_CONFIG
from ldm.files import staging
from ldm.models.diffusion.schedule import BUFFERS
from ldm.util import UserError, instantiate_from_config, listing, load_config, own_or_shipped

EMA = "model_ema."
TEACHER = "teacher."  # what a run of distillation keeps beside its model
FIRST_CONV = UNET + "input_blocks.0.0.weight"
DERIVED = {*BUFFERS, CLIP + "embeddings.position_ids"}  # entries that follow from the config


def read_checkpoint(path: str | os.PathLike, ema: bool = False) -> StateDict:
    """A checkpoint of any format -> tensors under the published names, on the CPU, memory-mapped.

    Averaged weights that a file carries beside the trained ones (model_ema.*) are left out; with `ema` they take the
    place of the trained ones. A teacher's (teacher.*) are left out, too. Raises UserError: missing, truncated, not a
    checkpoint, no averaged weights."""
    path = own_or_shipped(path)
    try:
        tensors = read_diffusers(path) if path.is_dir() else read_file(path)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read ({error.strerror}); check the path") from error
    except (RuntimeError, TypeError, IndexError) as error:  # tensors of shapes that cannot be translated
        raise UserError(f"checkpoint {path}: is damaged ({str(error).splitlines()[0]}); download it again") from error
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEACHER)}
    averaged = {name: tensors.pop(name) for name in list(tensors) if name.startswith(EMA)}
    if ema:
        # the average of model.diffusion_model.a.b is kept as model_ema.diffusion_modelab
        places = {EMA + name.removeprefix("model.").replace(".", ""): name for name in tensors if name.startswith(UNET)}
        absent = [place for place in places if place not in averaged]
        if absent:
            raise UserError(f"checkpoint {path}: lacks averaged weights for {listing(absent)}; read it without --ema")
        tensors |= {name: averaged[place] for place, name in places.items()}
    return with_constants(tensors)


def with_constants(tensors: StateDict) -> StateDict:
    """Add position_ids, a constant that the published file holds and later transformers do not, to an image tower."""
    positions = tensors.get(CLIP + "embeddings.position_embedding.weight")
    if positions is not None and positions.ndim == 2:
        tensors.setdefault(CLIP + "embeddings.position_ids", torch.arange(len(positions))[None])
    return tensors


def load_weights(model, tensors: StateDict, source: object = "checkpoint") -> None:
    """Put tensors under the published names into a LatentDiffusion, as float32, without copying float32 ones.

    Strict: raises UserError naming what is missing, left over or of another shape. The schedule follows from the
    config; the file's must agree with it, if it has one."""
    given = {name: t for name, t in tensors.items() if name not in DERIVED}
    _check_fit(_weight_shapes(model), given, source)
    own = model.alphas_cumprod.cpu()
    alphas = tensors.get("alphas_cumprod", own).float()
    if alphas.shape != own.shape or not torch.allclose(alphas, own, atol=5e-3):  # bfloat16 files keep it to that
        raise UserError(f"{source} has another noise schedule than the config: correct timesteps, linear_start/_end")

    weights = {name: t.float() for name, t in given.items()}
    model.load_state_dict(weights, strict=False, assign=True)


def _weight_shapes(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in DERIVED}


def _check_fit(expected: Mapping[str, tuple[int, ...]], given: StateDict, source: object) -> None:
    """Raise UserError naming what of the expected {name: shape} is missing, left over, of another shape, no float."""
    problems = []
    if missing := expected.keys() - given.keys():
        problems.append(f"it lacks {listing(missing)}")
    if extra := given.keys() - expected.keys():
        problems.append(f"it has in excess {listing(extra)}")
    for name in sorted(expected.keys() & given.keys()):
        if tuple(given[name].shape) != expected[name]:
            problems.append(f"{name} is {tuple(given[name].shape)} and not {expected[name]}")
        elif not given[name].is_floating_point():
            problems.append(f"{name} is {given[name].dtype} and not a float")
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        cure = "give the one that it was made with (--config)"
        if FIRST_CONV in given and given[FIRST_CONV].ndim == 4 and given[FIRST_CONV].shape[1] == 4:
            cure = "it is a Stable Diffusion model of 4 input channels, see scripts/modify_checkpoints.py"
        raise UserError(f"{source} does not fit the config; {cure}: {'; '.join(problems[:4])}{more}")


def load_model(config: Any, path: str | os.PathLike, device: str | torch.device = "cpu"):
    """config (a path or an OmegaConf node) and a checkpoint of any format -> LatentDiffusion on `device`, eval mode.

    The model is built without memory of its own and takes over the file's, so that a float32 file costs its size
    once. Raises UserError as read_checkpoint and load_weights do."""
    model = empty_model(config)
    load_weights(model, read_checkpoint(path), f"checkpoint {path}")
    return model.to(device).eval()


def empty_model(config: Any):
    """The config's LatentDiffusion with weights that take no memory (on torch's meta device)."""
    config = load_config(config)
    with torch.device("meta"):
        model = instantiate_from_config(config["model"], torch.nn.Module)
    if not hasattr(model, "learnable_vector"):
        raise UserError(f"config: target {config['model']['target']!r} is no Paint by Example; see configs/v1.yaml")
    return model


def write_checkpoint(tensors: StateDict, path: str | os.PathLike, config: Any = DEFAULT_CONFIG) -> None:
    """Tensors under the published names -> .safetensors, .ckpt (also .pt, .pth), or, for a path without such a
    suffix, a diffusers folder, which must not exist yet. A failure leaves what was there before.

    config: for a folder, what the tensors do not tell: heads, scale_factor, the CLIP tower's settings."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".safetensors", ".ckpt", ".pt", ".pth"):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        with staging(path.parent) as folder:
            if suffix == ".safetensors":
                save_file({name: t.contiguous() for name, t in tensors.items()}, folder / path.name)
            else:
                torch.save({"state_dict": tensors}, folder / path.name)
    elif re.fullmatch(r"\.[a-z]+", suffix):
        raise UserError(f"{path}: no format ends in {suffix}; use .safetensors, .ckpt, or none for a diffusers folder")
    elif path.exists():
        raise UserError(f"{path}: exists already; remove it, or name a folder that does not exist")
    else:
        model = empty_model(config)
        given = {name: t for name, t in tensors.items() if name not in DERIVED}
        expected = _weight_shapes(model)
        if not any(name.startswith(MAPPER) for name in given):  # Stable Diffusion: what it shares with the config
            given = {name: t for name, t in given.items() if name.startswith((UNET, VAE))}
            expected = {name: shape for name, shape in expected.items() if name.startswith((UNET, VAE))}
        if FIRST_CONV in given:  # of 4 channels or 9
            expected[FIRST_CONV] = tuple(given[FIRST_CONV].shape)
        _check_fit(expected, given, "the checkpoint")
        parts = to_diffusers(tensors, model)
        with staging(path.parent) as folder:
            for name, content in parts.items():
                file = folder / path.name / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if file.suffix == ".json":
                    file.write_text(json.dumps(content, indent=2) + "\n")
                else:
                    save_file({key: t.contiguous() for key, t in content.items()}, file, {"format": "pt"})
