"""The random numbers of training, drawn for each sample from a seed of its own.

So a loss depends on the seed, the step and the sample, but not on batch size, number of processes or earlier draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAINING, VALIDATION = 0, 1  # part of a seed, so that training and validation draw different numbers


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step for B samples.

    noise_gt, noise_inpaint (B,4,h,w): standard normals of the two posterior samples
    t (B,): timesteps, uniform
    noise (B,4,h,w): the standard normal to predict
    uniform (B,): in [0,1); below u_cond_percent the condition is dropped"""

    noise_gt: Tensor
    noise_inpaint: Tensor
    t: Tensor
    noise: Tensor
    uniform: Tensor

    @classmethod
    def from_seeds(
        cls, seeds: Sequence[Sequence[int]], shape: Sequence[int], num_timesteps: int, device: torch.device | str
    ) -> Draws:
        """seeds: for each sample, whole numbers from 0 on. shape: of a latent, (4,h,w)."""
        samples = []
        for seed in seeds:
            state = int(np.random.SeedSequence(tuple(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))
            generator = torch.Generator().manual_seed(state)  # on the CPU: the same numbers on every device
            noise_gt, noise_inpaint, noise = torch.randn(3, *shape, generator=generator)
            t = torch.randint(num_timesteps, (), generator=generator)
            samples.append((noise_gt, noise_inpaint, t, noise, torch.rand((), generator=generator)))
        return cls(*(torch.stack(column).to(device) for column in zip(*samples, strict=True)))
