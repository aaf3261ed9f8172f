"""Small parts that the UNet's and the autoencoder's blocks share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """timesteps (B,) -> (B,dim) float32: cosines, then sines, of t at dim/2 frequencies from 1 down to 1/max_period
    (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angle = timesteps[:, None].float() * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def zero_module(module: nn.Module) -> nn.Module:
    """The module with all parameters set to zero, so that at first a residual branch adds nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def tile_batch(x: Tensor, batch: int) -> Tensor:
    """x (b,...) -> (batch,...): all b rows, repeated batch/b times.

    The two branches of classifier-free guidance differ only in their contexts. So activations enter the UNet once for
    both, and are repeated where the first cross-attention, or a skip from before it, brings them together with 2 b
    contexts."""
    b = x.shape[0]
    if b == batch:
        return x
    assert batch % b == 0, f"a batch of {b} cannot be tiled to {batch}"
    return x.repeat(batch // b, *[1] * (x.ndim - 1))


def checkpoint(function: Callable[..., Tensor], enabled: bool, *inputs: Tensor) -> Tensor:
    """function(*inputs); if enabled, the backward pass recomputes its activations (Chen et al. 2016)."""
    if enabled and torch.is_grad_enabled():
        return torch_checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
