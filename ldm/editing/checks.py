"""What is asked for: numbers that are out of range, devices that are not there, memory that is too small."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ldm.models.diffusion.sampling import check_sampler
from ldm.util import UserError

MAX_SCALE = 100.0


def pick_device(name: str | None = None) -> torch.device:
    """A device by name; None: CUDA, else Apple's MPS, else the CPU. Raises UserError where it is not available."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own way to say that it is not there
        reason = str(error).split("\n")[0].split(". ")[0]
        raise UserError(f"device {name!r} cannot be used here ({reason:.120}); use cuda, mps or cpu") from error
    return device


def check_request(
    scale: float,
    steps: int,
    sampler: str,
    eta: float,
    seeds: Sequence[int],
    num_timesteps: int = 1000,
    interval: tuple[int, int] | None = None,
    strength: float = 1.0,
    refresh: int = 1,
) -> None:
    """Raises UserError for the first number that is out of range; the arguments of PaintByExample.sample."""
    if not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
        raise UserError(f"scale {scale} is out of range; use 0 to {MAX_SCALE:.0f}, for instance 5")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed} is out of range; use 0 to 2^63 - 1")
    if not 0 <= strength <= 1:
        raise UserError(f"strength {strength} is out of range; use 0 (nothing changes) to 1 (all is new)")
    check_sampler(sampler, steps, eta, num_timesteps)
    if interval and not 0 <= interval[0] <= interval[1]:
        raise UserError(f"interval {interval} is none of timesteps; use its first and last, for instance (200, 999)")
    if refresh < 1:
        raise UserError(f"refresh {refresh} is out of range; use 1 (all is computed) or more")


def out_of_memory_is_told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates what fills a memory: PyTorch's errors of it as UserErrors."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                "the GPU's memory is full; make fewer pictures at once, or smaller ones, or use --offload"
            ) from error
        except RuntimeError as error:
            if not re.search("DefaultCPUAllocator: .*memory|MPS backend out of memory", str(error)):
                raise
            raise UserError("the memory is full; make fewer pictures at once, or smaller ones") from error

    return run
