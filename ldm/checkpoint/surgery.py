"""Makes weights from other weights: 4 -> 9 input channels, A + (B - C), half precision."""

from __future__ import annotations

import torch

from ldm.checkpoint.files import StateDict
from ldm.checkpoint.names import FIRST_CONV, UNET, VAE
from ldm.models.diffusion.schedule import BUFFERS
from ldm.util import UserError


def widen(tensors: StateDict, in_channels: int = 9) -> StateDict:
    """Gives the UNet's first convolution more input channels, with zeros for their weights, so that training starts
    from the prior (Yang et al. 2022, section 3.1). Raises UserError: it has as many already, or there is no UNet."""
    weight = tensors.get(FIRST_CONV)
    if weight is None or weight.ndim != 4:
        raise UserError(f"the checkpoint has no {FIRST_CONV}: use a Stable Diffusion v1 model")
    if weight.shape[1] >= in_channels:
        raise UserError(f"the checkpoint's UNet has {weight.shape[1]} input channels already: use it without widening")
    new = weight.new_zeros(weight.shape[0], in_channels - weight.shape[1], *weight.shape[2:])
    return {**tensors, FIRST_CONV: torch.cat([weight, new], dim=1)}


def add_difference(a: StateDict, b: StateDict, c: StateDict) -> StateDict:
    """A + (B - C) of the UNet and the autoencoder, in float32: adds to A what B learned beyond its base C.

    For instance A = Paint by Example, B = a fine-tuned Stable Diffusion v1 model, C = Stable Diffusion v1-4. If A's
    first convolution has more input channels than B's and C's, the difference is added to the first ones. Raises
    UserError naming the tensor that one of them lacks or that differs in shape."""
    if FIRST_CONV not in a:
        raise UserError("add difference: A has no UNet: use a model such as checkpoints/model.ckpt")
    out = dict(a)
    for name in [name for name in a if name.startswith((UNET, VAE))]:
        if name not in b or name not in c:
            raise UserError(
                f"add difference: {'B' if name not in b else 'C'} lacks {name}: use a Stable Diffusion v1 model"
            )
        delta = b[name].float() - c[name].float() if b[name].shape == c[name].shape else None
        value = a[name].float().clone()
        widened = name == FIRST_CONV and delta is not None and delta.shape == value[:, : b[name].shape[1]].shape
        if delta is None or (delta.shape != value.shape and not widened):
            shapes = ", ".join(str(tuple(x[name].shape)) for x in (a, b, c))
            raise UserError(
                f"add difference: {name} has the shapes {shapes} in A, B and C: use models of one architecture"
            )
        shared = value[:, : delta.shape[1]] if name == FIRST_CONV else value
        shared += delta
        out[name] = value.to(a[name].dtype)
    return out


def halve(tensors: StateDict) -> StateDict:
    """Converts weights to float16, half the size; the noise schedule stays float32."""
    return {name: t.half() if t.is_floating_point() and name not in BUFFERS else t for name, t in tensors.items()}
