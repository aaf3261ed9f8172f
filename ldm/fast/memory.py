"""The memory of a process: how much it has used, and whether it goes back to the system (with glibc)."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def keep_memory() -> None:
    """Keep freed memory for the next allocations, instead of returning it to the system and getting it back, page by
    page, in every step. For a process that runs one thing to its end."""
    _mallopt(M_MMAP_MAX=(-4, 0), M_TRIM_THRESHOLD=(-1, -1))


def share_memory() -> None:
    """Let all threads share one pool of memory. Otherwise each keeps what it frees, which adds up to gigabytes when
    dozens of threads hold pictures. For a server."""
    _mallopt(M_ARENA_MAX=(-8, 1))


def _mallopt(**options: tuple[int, int]) -> None:
    """name = (its number in malloc.h, value); nothing happens with other C libraries than glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for number, value in options.values():
            mallopt(number, value)


def peak_memory() -> str:
    """The most memory that this process has held, for people: the GPU's if one was used, else the machine's."""
    import torch

    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return f"{peak / 1e9:.1f} GB on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"
