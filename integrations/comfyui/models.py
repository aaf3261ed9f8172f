"""Models for the nodes: which can be chosen, and the one that stays loaded between runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable

from ldm.checkpoint.adapters import in_list
from ldm.checkpoint.locate import DEFAULT_CKPT, DEFAULT_CONFIG, MINI_CKPT, MINI_CONFIG
from ldm.editing.options import Loading
from ldm.pipeline import PaintByExample

from . import host

RELEASED = "released model"  # from its usual places, or fetched from the hub
MINIATURE = "miniature model"  # comes with the package
NO_LORA = "none"
AUTO = "auto"

_loaded: tuple[Hashable, PaintByExample] | None = None
_lock = threading.Lock()


def checkpoints() -> list[str]:
    """What can be chosen as checkpoint: the two models that we know, and ComfyUI's checkpoints."""
    return [RELEASED, MINIATURE, *host.files_in("checkpoints")]


def loras() -> list[str]:
    return [NO_LORA, *host.files_in("loras")]


def options(
    checkpoint: str, precision: str, lora: str, lora_scale: float, offload: bool = False, config: str = ""
) -> Loading:
    """The values of the node, of which checkpoint and lora are entries of the lists above."""
    if checkpoint == RELEASED:
        files = [DEFAULT_CONFIG, DEFAULT_CKPT if DEFAULT_CKPT.exists() else "hub"]
    elif checkpoint == MINIATURE:
        files = [MINI_CONFIG, MINI_CKPT]
    else:
        files = [config or DEFAULT_CONFIG, host.path_of("checkpoints", checkpoint)]
    return Loading(
        config=files[0],
        ckpt=files[1],
        device=host.device(),
        precision=None if precision == AUTO else precision,
        lora=None if lora == NO_LORA else host.path_of("loras", lora),
        lora_scale=lora_scale,
        offload=offload,
    )


def fingerprint(chosen: Loading) -> Hashable:
    """Changes with the options and with the files that they name."""
    files = [chosen.config, chosen.ckpt, *in_list(chosen.lora)]
    return (repr(chosen), *(_stamp(path) for path in files if path is not None))


def _stamp(path: str | os.PathLike) -> tuple[int, int] | None:
    """Changes with a file; None if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def load(chosen: Loading) -> PaintByExample:
    """The model that was loaded last if it is the same, else a new one in its place. Raises UserError as
    PaintByExample.load does."""
    global _loaded
    with _lock:
        key = fingerprint(chosen)
        if _loaded is None or _loaded[0] != key:
            _loaded = None  # gives its memory back before the new model needs it
            host.make_room()
            _loaded = key, PaintByExample.from_loading(chosen)
        return _loaded[1]
