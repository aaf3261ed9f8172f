"""What a caller may give as a picture: a path, a PIL picture, an array or a tensor."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from ldm.images import open_picture

Picture: TypeAlias = Image.Image | str | os.PathLike | np.ndarray | torch.Tensor
KINDS = (
    "a path, a PIL picture, an array (H,W,3) of uint8, or a tensor (3,H,W) of uint8 or of floats from 0 to 1;"
    " masks also (H,W), and of bool"
)
CHANNELS = (1, 3, 4)


def is_one_picture(value: Any) -> bool:
    """Whether this is a picture, not a list or a batch of them."""
    return isinstance(value, Image.Image | str | os.PathLike) or (
        isinstance(value, np.ndarray | torch.Tensor) and value.ndim <= 3
    )


def as_picture(value: Any, name: str) -> Image.Image:
    """-> a PIL picture; a file is opened and decoded.

    value: a path, a PIL picture, an array (H,W), (H,W,1), (H,W,3) or (H,W,4) of uint8 or bool, or a tensor (H,W),
        (1,H,W), (3,H,W) or (4,H,W) of uint8, bool or floats from 0 to 1; name: "image", ..., for errors.
    Raises UserError: a file that cannot be read; TypeError: anything else."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, str | os.PathLike):
        return open_picture(value, name)
    if isinstance(value, torch.Tensor):
        pixels = _tensor_pixels(value.detach().cpu(), name)
    elif isinstance(value, np.ndarray):
        pixels = value
    else:
        raise TypeError(f"{name} is of the type {type(value).__name__}: give {KINDS}")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in CHANNELS)
    if pixels.dtype != np.uint8 or not fits or pixels.size == 0:
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        raise TypeError(f"{name} is {kind} of {value.dtype} and shape {tuple(value.shape)}: give {KINDS}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _tensor_pixels(value: torch.Tensor, name: str) -> np.ndarray:
    """(C,H,W) -> (H,W,C), floats -> uint8; other shapes and types as they are. Raises TypeError: floats beyond 0..1."""
    if value.is_floating_point():
        low, high = (value.min().item(), value.max().item()) if value.numel() else (0, 0)
        if not (low >= 0 and high <= 1):  # so for NaN
            raise TypeError(
                f"{name} is a tensor of values from {low:.3g} to {high:.3g}: give floats from 0 to 1, or uint8"
            )
        value = (value.float() * 255).round().to(torch.uint8)
    if value.ndim == 3 and value.shape[0] in CHANNELS:
        value = value.movedim(0, 2)
    elif value.ndim == 3:
        value = value[None]  # no picture: its shape is told
    return value.numpy()
