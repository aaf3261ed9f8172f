"""Makes weights from other weights: 4 -> 9 input channels, A + (B - C), a larger autoencoder, half precision."""

from __future__ import annotations

import torch

from ldm.checkpoint.files import StateDict
from ldm.checkpoint.names import FIRST_CONV, UNET, VAE
from ldm.models.diffusion.schedule import BUFFERS
from ldm.util import UserError, listing

KINDS = ("weight", "bias")


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


def deepen(tensors: StateDict, own: StateDict) -> StateDict:
    """Gives an autoencoder another level at twice the resolution (progressive growing, Karras et al. 2018), so that
    training starts from what it knows: the latents of a picture are nearly those of the same picture at half its size.

    own: random weights of the larger autoencoder, whose first two levels have as many channels as `tensors`' first one.

    The new convolutions copy: the encoder's first one keeps a pixel's 3 x 3 neighbours in 27 channels, from which the
    downsampling computes the mean of 2 x 2 pixels and the former first convolution; the new blocks add zero."""
    out = {}
    for name, tensor in tensors.items():
        for levels in (f"{VAE}encoder.down.", f"{VAE}decoder.up."):
            if name.startswith(levels):
                level, rest = name.removeprefix(levels).split(".", 1)
                name = f"{levels}{int(level) + 1}.{rest}"
        out[name] = tensor
    first, down = f"{VAE}encoder.conv_in", f"{VAE}encoder.down.0.downsample.conv"
    up = f"{VAE}decoder.up.1.upsample.conv"
    out |= {
        name: torch.zeros_like(tensor) if ".conv2." in name else tensor
        for name, tensor in own.items()
        if name.startswith((f"{VAE}encoder.down.0.block.", f"{VAE}decoder.up.0.block."))
    }
    out |= {f"{name}.{kind}": torch.zeros_like(own[f"{name}.{kind}"]) for name in (first, down, up) for kind in KINDS}
    out[f"{down}.bias"] = tensors[f"{first}.bias"]
    out[f"{up}.weight"][:, :, 1, 1] = torch.eye(len(out[f"{up}.weight"]))
    channels = torch.arange(27).view(3, 3, 3)  # by row and column of the neighbour, and by colour
    out[f"{first}.weight"].flatten(1)[channels.permute(2, 0, 1).flatten(), torch.arange(27)] = 1
    taken = {-2: (0, 0), -1: (0, 0), 0: (0, 1), 1: (1, 1), 2: (2, 1), 3: (2, 2)}  # offset -> tap, neighbour
    kernel = tensors[f"{first}.weight"].float()
    for y, (tap_y, row) in taken.items():
        for x, (tap_x, column) in taken.items():
            taps = out[f"{down}.weight"][:, channels[row, column], tap_y, tap_x]
            out[f"{down}.weight"][:, channels[row, column], tap_y, tap_x] = (
                taps + kernel[:, :, y // 2 + 1, x // 2 + 1] / 4
            )
    return out


def halve(tensors: StateDict) -> StateDict:
    """Converts weights to float16, half the size; the noise schedule stays float32. Raises UserError: weights that are
    finite and too large for float16."""
    half = {name: t.half() if t.is_floating_point() and name not in BUFFERS else t for name, t in tensors.items()}
    if large := [name for name, t in half.items() if t.isinf().any() and not tensors[name].isinf().any()]:
        raise UserError(f"{listing(large)} would be infinite in float16, which ends at 65504: keep float32")
    return half
