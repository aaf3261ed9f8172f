"""The random numbers of training, each sample's from a seed of its own, so that a loss depends on the seed, the step
and the sample, and not on batch size, number of processes or what was computed before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAINING, VALIDATION = 0, 1  # what tells the seeds of the two apart


@dataclass(frozen=True)
class Draws:
    """What one step draws for B samples.

    noise_gt, noise_inpaint: standard normals (B,4,h,w) of the two posterior samples. t: time steps (B,). noise: the
    standard normal (B,4,h,w) to predict. uniform: (B,) in [0,1), below u_cond_percent the condition is dropped."""

    noise_gt: Tensor
    noise_inpaint: Tensor
    t: Tensor
    noise: Tensor
    uniform: Tensor

    @classmethod
    def from_seeds(
        cls, seeds: Sequence[Sequence[int]], shape: tuple[int, int, int], num_timesteps: int, device: torch.device | str
    ) -> Draws:
        """seeds: of each sample, whole numbers from 0 on. shape: of a latent, (4,h,w)."""
        columns = []
        for seed in seeds:
            state = int(np.random.SeedSequence(tuple(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))
            generator = torch.Generator().manual_seed(state)  # on the CPU: the same on every device
            normals = torch.randn(3, *shape, generator=generator)
            t = torch.randint(num_timesteps, (), generator=generator)
            columns.append((normals[0], normals[1], t, normals[2], torch.rand((), generator=generator)))
        return cls(*(torch.stack(column).to(device) for column in zip(*columns, strict=True)))
