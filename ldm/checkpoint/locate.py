"""The checkpoint and the config that an edit uses by default, and where to find them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ldm.storage import is_url, local, local_or_shipped
from ldm.util import INSTALLED, PACKAGE, UserError, UserNote, shipped

ROOT = Path() if INSTALLED else PACKAGE.parent  # the folder of checkpoints/: the working folder, or the checkout
DEFAULT_CONFIG = shipped("configs/v1.yaml")
DEFAULT_CKPT = ROOT / "checkpoints" / "model.ckpt"
MINI_CONFIG = shipped("configs/mini/paint_by_example.yaml")
MINI_CKPT = shipped("pretrained_models/mini.safetensors")
MINI_DETAIL = shipped("pretrained_models/mini_detail.safetensors")
HUB_REPO, HUB_FILE = "Fantasy-Studio/Paint-by-Example", "model.ckpt"


def choose_model(
    config: Any = None,
    ckpt: str | os.PathLike | None = None,
    lora: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
) -> tuple[Any, Path]:
    """Chooses the config and the checkpoint if one of them or both are not named. lora: an adapter to be merged, or
    several.

    Neither is named: the released model if it is in DEFAULT_CKPT or in the hub's cache; else the miniature model, with
    a UserNote, unless there is an adapter that does not fit it. Only one is named: the other is the released
    model's. Raises UserError as find_checkpoint does, and for an adapter whose model is not here."""
    if is_url(config):
        config = local(config)
    if config is None and ckpt is None and MINI_CKPT.exists() and _released() is None:
        for path in _beyond_miniature(lora):
            raise UserError(
                f"lora {path} does not fit the miniature model, and {DEFAULT_CKPT} is missing: name the model that it"
                " was trained from with --ckpt; --ckpt hub downloads the released model (5 GB)"
            )
        words = "using the miniature model, which paints small pictures of shapes; --ckpt hub fetches the released one"
        warnings.warn(words, UserNote, stacklevel=2)  # once a process
        return MINI_CONFIG, MINI_CKPT
    return DEFAULT_CONFIG if config is None else config, find_checkpoint(ckpt)


def _released() -> Path | None:
    """The released model, if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if DEFAULT_CKPT.exists():
        return DEFAULT_CKPT
    cached = try_to_load_from_cache(HUB_REPO, HUB_FILE)
    return Path(cached) if isinstance(cached, str) else None


def _beyond_miniature(lora: str | os.PathLike | Sequence[str | os.PathLike] | None) -> list[str | os.PathLike]:
    """The adapters that the miniature model lacks weights of, or has in other shapes. Raises UserError as read_adapter
    does."""
    from ldm.checkpoint.adapters import in_list, read_adapter

    if not (paths := in_list(lora)):
        return []
    with safe_open(MINI_CKPT, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    def fits(path: str | os.PathLike) -> bool:
        adapter = read_adapter(path)
        return all(name in shapes and adapter.fits(name, shapes[name]) for name in adapter.weights)

    return [path for path in paths if not fits(path)]


def find_checkpoint(name: str | os.PathLike | None = None) -> Path:
    """Finds a checkpoint.

    name: the path or URL of the user's file, or the path of one that comes with the project; "hub": the released
    model, from the hub's cache or downloaded; None: the released model in DEFAULT_CKPT or in the hub's cache. Only
    "hub" and a URL download.

    Raises UserError if there is none or the hub cannot be reached, with the places to get the file from and to put
    it."""
    if name not in (None, "hub"):
        return local_or_shipped(name)
    if name is None:
        if (released := _released()) is not None:
            return released
        raise UserError(
            f"{DEFAULT_CKPT} is missing: name a checkpoint with --ckpt; --ckpt hub downloads the released model (5 GB)"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    print(f"fetching {HUB_FILE} (several GB, once) of {HUB_REPO} from the hub", file=sys.stderr)
    logging.set_verbosity_error()  # our one sentence replaces the messages of its retries
    try:
        return Path(hf_hub_download(HUB_REPO, HUB_FILE))
    except Exception as error:  # the hub's client passes on any exception of its HTTP library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the released model could not be fetched from the hub ({reason}): download https://huggingface.co/"
            f"{HUB_REPO}/resolve/main/{HUB_FILE} to {DEFAULT_CKPT}, or name a file with --ckpt"
        ) from error
