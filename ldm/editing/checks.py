"""Devices that cannot be used, and memory that is too small, as errors that a user can act on."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from ldm.util import UserError

P = ParamSpec("P")
R = TypeVar("R")


def pick_device(name: str | None = None) -> torch.device:
    """A device by name; None: CUDA, else Apple's MPS, else the CPU. Raises UserError if it is not available."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend raises an error of its own
        reason = str(error).split("\n")[0].split(". ")[0]
        raise UserError(f"device {name!r} cannot be used here ({reason:.120}): use cuda, mps or cpu") from error
    return device


def report_out_of_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: PyTorch's errors about memory that is full become UserErrors."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                "the GPU's memory is full: make fewer pictures at once, or smaller ones, or use --offload"
            ) from error
        except RuntimeError as error:
            if not re.search("DefaultCPUAllocator: .*memory|MPS backend out of memory", str(error)):
                raise
            raise UserError("the memory is full: make fewer pictures at once, or smaller ones") from error

    return run
