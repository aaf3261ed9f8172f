"""How a process's memory goes back to the system, where the C library is glibc."""

from __future__ import annotations

import contextlib
import ctypes


def keep_memory() -> None:
    """Memory that is freed stays with this process for what is allocated next, instead of going back to the system and
    coming again, page by page, in every step. For a process that runs one thing to its end."""
    _mallopt(M_MMAP_MAX=(-4, 0), M_TRIM_THRESHOLD=(-1, -1))


def share_memory() -> None:
    """All threads share one pool of memory. Else each keeps what it frees for itself: with pictures in dozens of them,
    gigabytes. For a server."""
    _mallopt(M_ARENA_MAX=(-8, 1))


def _mallopt(**options: tuple[int, int]) -> None:
    """name = (its number in malloc.h, value), for glibc; with other C libraries nothing changes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for number, value in options.values():
            mallopt(number, value)
