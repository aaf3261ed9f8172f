"""Weights made from other weights: 4 -> 9 input channels, A + (B - C), half precision."""

from __future__ import annotations

import torch

from ldm.checkpoint.diffusers import UNET, VAE
from ldm.checkpoint.files import StateDict
from ldm.checkpoint.load import FIRST_CONV
from ldm.models.diffusion.schedule import BUFFERS
from ldm.util import UserError


def widen(tensors: StateDict, in_channels: int = 9) -> StateDict:
    """4 -> 9 input channels: zeros for the new ones, so that the model starts as the prior (Yang et al. 2022, 3.1)."""
    weight = tensors.get(FIRST_CONV)
    if weight is None or weight.ndim != 4:
        raise UserError(f"checkpoint: has no {FIRST_CONV}; name a Stable Diffusion v1 model")
    if weight.shape[1] >= in_channels:
        raise UserError(f"checkpoint: its UNet takes {weight.shape[1]} input channels already; nothing to widen")
    new = weight.new_zeros(weight.shape[0], in_channels - weight.shape[1], *weight.shape[2:])
    return {**tensors, FIRST_CONV: torch.cat([weight, new], dim=1)}


def add_difference(a: StateDict, b: StateDict, c: StateDict) -> StateDict:
    """A + (B - C) over the UNet and the autoencoder, in float32: what B learned beyond its base C, given to A.

    For instance A = Paint by Example, B = a fine-tuned SD v1 model, C = SD v1-4. Where A's first convolution has
    more input channels, its first ones are those of B and C. Raises UserError if the three do not fit."""
    if FIRST_CONV not in a:
        raise UserError("add difference: A has no UNet; give a model such as checkpoints/model.ckpt")
    out = dict(a)
    for name in [name for name in a if name.startswith((UNET, VAE))]:
        if name not in b or name not in c:
            raise UserError(f"add difference: {name} is not in {'B' if name not in b else 'C'}; give SD v1 models")
        delta = b[name].float() - c[name].float() if b[name].shape == c[name].shape else None
        value = a[name].float().clone()
        widened = name == FIRST_CONV and delta is not None and delta.shape == value[:, : b[name].shape[1]].shape
        if delta is None or (delta.shape != value.shape and not widened):
            shapes = ", ".join(str(tuple(x[name].shape)) for x in (a, b, c))
            raise UserError(f"add difference: {name} has the shapes {shapes} in A, B and C; give models that fit")
        same = value[:, : delta.shape[1]] if name == FIRST_CONV else value
        same += delta
        out[name] = value.to(a[name].dtype)
    return out


def halve(tensors: StateDict) -> StateDict:
    """Weights to float16, half the size; the schedule stays float32."""
    return {name: t.half() if t.is_floating_point() and name not in BUFFERS else t for name, t in tensors.items()}
