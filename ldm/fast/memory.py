"""The memory of a process: how glibc, the C library of most Linux systems, returns it, and how much was used."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def keep_memory() -> None:
    """Freed memory stays with this process and is used for its next allocations. Otherwise large blocks go back to the
    system and are requested again, page by page, in every step. For a process that runs one job to its end."""
    _mallopt(-4, 0)  # M_MMAP_MAX
    _mallopt(-1, -1)  # M_TRIM_THRESHOLD


def share_memory() -> None:
    """All threads share one pool of memory. Otherwise each thread keeps what it has freed for itself: gigabytes where
    dozens of threads handle pictures. For a server."""
    _mallopt(-8, 1)  # M_ARENA_MAX


def _mallopt(option: int, value: int) -> None:
    """Sets an option of malloc by its number in malloc.h; without glibc nothing changes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(option, value)


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
