"""The forward process q(x_t | x_0) = N(sqrt(alphas_cumprod_t) x_0, (1 - alphas_cumprod_t) I) (Ho et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Tensors of a checkpoint that are not weights but follow from the schedule.
BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """betas (T,) float64; everything else follows. t counts from 0 (almost clean) to T-1 (almost noise).

    | variable             | symbol (Ho et al. 2020)                                       |
    |----------------------|---------------------------------------------------------------|
    | betas                | beta_t                                                        |
    | abar, alphas_cumprod | alpha-bar_t = prod_{s<=t} (1 - beta_s)                        |
    | abar_prev            | alpha-bar_{t-1}, with alpha-bar_{-1} = 1                      |
    | posterior_variance   | beta-tilde_t, equation 7                                      |
    | posterior_mean_coef1 | coefficient of x_0 in mu-tilde_t, equation 7                  |
    | posterior_mean_coef2 | coefficient of x_t in mu-tilde_t, equation 7                  |
    """

    betas: NDArray[np.float64]

    @classmethod
    def linear(cls, timesteps: int = 1000, linear_start: float = 0.00085, linear_end: float = 0.0120) -> NoiseSchedule:
        """The schedule that configs call "linear", which is linear in sqrt(beta). Raises ValueError: out of range."""
        if not (0 < linear_start <= linear_end < 1 and 1 < timesteps < 10**6):
            raise ValueError(
                f"timesteps is {timesteps}, linear_start is {linear_start}, linear_end is {linear_end}: "
                "use 0 < linear_start <= linear_end < 1 and 1 < timesteps < 1000000"
            )
        return cls(np.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=np.float64) ** 2)

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """alpha-bar (T,) float64."""
        return np.cumprod(1.0 - self.betas, dtype=np.float64)

    def buffers(self) -> dict[str, Tensor]:
        """The BUFFERS by name, each (T,), computed in float64 and rounded to float32."""
        betas, abar = self.betas, self.alphas_cumprod
        abar_prev = np.append(1.0, abar[:-1])
        variance = betas * (1.0 - abar_prev) / (1.0 - abar)
        values = {
            "betas": betas,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": abar_prev,
            "sqrt_alphas_cumprod": np.sqrt(abar),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - abar),
            "log_one_minus_alphas_cumprod": np.log(1.0 - abar),
            "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / abar),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / abar - 1.0),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),  # the variance is 0 at t = 0
            "posterior_mean_coef1": betas * np.sqrt(abar_prev) / (1.0 - abar),
            "posterior_mean_coef2": (1.0 - abar_prev) * np.sqrt(1.0 - betas) / (1.0 - abar),
        }
        return {name: torch.from_numpy(values[name].astype(np.float32)) for name in BUFFERS}

    def lvlb_weights(self) -> Tensor:
        """(T,) float32: weight of the noise error in the variational bound (Ho et al. 2020, equation 12). Entry 0 would
        be infinite and is a copy of entry 1."""
        rounded = {name: value.numpy() for name, value in self.buffers().items()}
        alphas = (1.0 - self.betas).astype(np.float32)
        variance = np.append(rounded["posterior_variance"][1], rounded["posterior_variance"][1:])
        weights = rounded["betas"] ** 2 / (2.0 * variance * alphas * (1.0 - rounded["alphas_cumprod"]))
        weights[0] = weights[1]
        return torch.from_numpy(weights)
