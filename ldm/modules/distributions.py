"""The autoencoder's posterior."""

from __future__ import annotations

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """N(mean, diag(std^2)) of `parameters` (B,2C,h,w) = mean ++ log variance (Kingma & Welling 2013).

    The log variance is clamped to [-30,20]."""

    def __init__(self, parameters: Tensor):
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.var = self.logvar.exp()
        self.std = (0.5 * self.logvar).exp()

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """(B,C,h,w); `noise` standard normal of that shape, drawn if absent."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def mode(self) -> Tensor:
        """The mean, (B,C,h,w)."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, (B,), summed over C,h,w."""
        return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))
