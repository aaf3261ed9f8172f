"""Files of detail paths (ldm/models/detail): a .safetensors file of the path's tensors, whose metadata has the settings
from which the path is built, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ldm.checkpoint.adapters import read_tensors
from ldm.checkpoint.files import StateDict
from ldm.checkpoint.load import require_fit
from ldm.files import save_tensors, staging
from ldm.models.detail.kinds import build_detail
from ldm.storage import Place
from ldm.util import UserError

if TYPE_CHECKING:  # it imports Lightning, which takes two seconds
    from ldm.models.detail.path import DetailPath
    from ldm.models.diffusion.ddpm import LatentDiffusion

SETTINGS = "detail"  # key of the metadata
CURE = "use a detail.safetensors that training wrote"


def read_detail(path: str | os.PathLike) -> tuple[dict[str, Any], StateDict]:
    """-> the settings and tensors of a file. Raises UserError: missing, damaged, not a detail path."""
    metadata, tensors = read_tensors(path, "detail", CURE)
    if "rank" in metadata:
        raise UserError(f"detail {path} is an adapter of fine-tuning: give it with --lora")
    try:
        settings = json.loads(metadata[SETTINGS])
        if not isinstance(settings, dict):
            raise ValueError
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"detail {path} has no settings in its metadata: {CURE}") from error
    return settings, tensors


def load_detail(model: LatentDiffusion, path: str | os.PathLike) -> DetailPath:
    """The detail path of a file for a model, on its device, frozen. Raises UserError as read_detail does, and for one
    that was trained for another model, naming what does not fit."""
    settings, tensors = read_detail(path)
    with torch.device("meta"):
        detail = build_detail(model.model.diffusion_model, settings)
    detail.require_size(model.size_multiple)
    cure = "use it with the model that it was trained for, or name another"
    shapes = {name: tuple(tensor.shape) for name, tensor in detail.state_dict().items()}
    require_fit(shapes, tensors, f"detail {path}", "the model", cure)
    detail.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return detail.to(model.device).eval().requires_grad_(False)


def write_detail(settings: Mapping[str, Any], tensors: StateDict, path: Place) -> None:
    """Writes atomically: a failure leaves an earlier file as it was."""
    metadata = {"format": "pt", SETTINGS: json.dumps(dict(settings))}
    with staging(path.parent) as folder:
        save_tensors({name: t.cpu().contiguous() for name, t in tensors.items()}, folder / path.name, metadata)
