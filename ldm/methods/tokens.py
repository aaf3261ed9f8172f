"""Learned tokens: a vector that is given in the place of a reference, as a .safetensors file; arithmetic on tokens.

| name in the file | value                                                                        |
|------------------|------------------------------------------------------------------------------|
| token            | c (M,D) float32: what the UNet sees of the object                            |
| picture          | (H,W,3) uint8: the object as people see it, in grids and beside results      |
| first, second    | Adam's moments (M,D), with which learning goes on                            |
| v                | of the model that it was learned with, which tells that model from others    |

The metadata hold `steps`, how many were learned, `unit`, the first token's root mean square, and `learned_from`, a
digest of the pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.files import save_tensors, staging
from ldm.models.diffusion.conditioning import is_related
from ldm.storage import Place, local
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

TENSORS = ("token", "picture", "first", "second", "v")


@dataclass(frozen=True, eq=False)
class LearnedToken:
    """The fields are described at the top of this module."""

    token: Tensor
    picture: Tensor
    first: Tensor
    second: Tensor
    steps: int = 0
    unit: float = 0.0
    learned_from: str = ""
    v: Tensor | None = None  # (D,); None: not known

    def check_model(self, model: LatentDiffusion, path: object) -> None:
        """path: of the file. Raises UserError: a token of another shape than this model's, or of a model that is not
        related to this one."""
        cure = "learn it again with this model"
        own = tuple(self.token.shape)
        wanted = (cast(int, model.cond_stage_model.tokens), model.learnable_vector.numel())
        if own != wanted:
            raise UserError(f"reference {path} is a token of the shape {own}, but the model's have {wanted}: {cure}")
        if self.v is not None and not is_related(self.v, model.learnable_vector):
            raise UserError(f"reference {path} is a token of another model: {cure}")


def read_token(path: str | os.PathLike) -> LearnedToken:
    """Raises UserError: missing, damaged, not a token."""
    cure = "give a picture, or a token that scripts/learn_object.py wrote"
    path = local(path)
    try:
        path.open("rb").close()  # gives the reason where the file cannot be opened
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = [name for name in TENSORS if name in file.keys()]  # noqa: SIM118  not a dict
            tensors = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise UserError(f"reference {path} cannot be read ({error.strerror or error}): {cure}") from error
    except SafetensorError as error:
        raise UserError(f"reference {path} is damaged or not a .safetensors file ({error}): {cure}") from error
    try:
        steps, unit = int(metadata["steps"]), float(metadata["unit"])
        found = LearnedToken(**tensors, steps=steps, unit=unit, learned_from=metadata["learned_from"])
        shapes = {found.token.shape, found.first.shape, found.second.shape}
        is_token = len(shapes) == 1 and found.token.ndim == 2 and found.token.dtype == torch.float32
        is_token = is_token and found.picture.dtype == torch.uint8 and found.picture.shape[2:] == (3,)
        is_token = is_token and (found.v is None or found.v.shape == found.token.shape[1:])
    except (KeyError, TypeError, ValueError):
        is_token = False
    if not is_token:
        raise UserError(f"reference {path} is not a learned token: {cure}")
    if not found.token.isfinite().all():
        raise UserError(f"reference {path} is not finite: learn it again at a lower --learning_rate")
    return found


def write_token(learned: LearnedToken, path: Place) -> None:
    """Writes atomically: a failure leaves an earlier file as it was."""
    metadata = {name: str(getattr(learned, name)) for name in ("steps", "unit", "learned_from")} | {"format": "pt"}
    with staging(path.parent) as folder:
        found = {name: getattr(learned, name) for name in TENSORS}
        tensors = {name: tensor.detach().cpu() for name, tensor in found.items() if tensor is not None}
        save_tensors(tensors, folder / path.name, metadata)


def between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of the directions of two tokens, and linear of their lengths.

    a, b: (...,D); share: 0 for a, 1 for b. Tokens of one direction, or of opposite ones, are mixed linearly."""
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    cosine = ((a / length_a) * (b / length_b)).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    direction = (((1 - share) * angle).sin() * a / length_a + (share * angle).sin() * b / length_b) / sine
    mixed = torch.lerp(length_a, length_b, share) * direction
    return torch.where(sine > 1e-4, mixed, torch.lerp(a, b, share))


def mixed(tokens: Tensor, amount: float) -> Tensor:
    """Two or three tokens (2 or 3,...,D) -> (...,D). Of a and b: between(a, b, amount). Of c, a and b: c + amount *
    (b - a), c with some of what distinguishes b from a."""
    if len(tokens) == 2:
        return between(tokens[0], tokens[1], amount)
    c, a, b = tokens
    return c + amount * (b - a)
