"""The checkpoint and the config that an edit uses by default, and where to find them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ldm.util import INSTALLED, PACKAGE, UserError, own_or_shipped, shipped

ROOT = Path() if INSTALLED else PACKAGE.parent  # the folder of checkpoints/: the working folder, or the checkout
DEFAULT_CONFIG = shipped("configs/v1.yaml")
DEFAULT_CKPT = ROOT / "checkpoints" / "model.ckpt"
MINI_CONFIG = shipped("configs/mini/paint_by_example.yaml")
MINI_CKPT = shipped("pretrained_models/mini.safetensors")
HUB_REPO, HUB_FILE = "Fantasy-Studio/Paint-by-Example", "model.ckpt"


def choose_model(config: Any = None, ckpt: str | os.PathLike | None = None, adapted: bool = False) -> tuple[Any, Path]:
    """Chooses the config and the checkpoint if one of them or both are not named.

    Neither is named: the released model if it is in DEFAULT_CKPT or in the hub's cache, else the miniature model, with
    a note on stderr. With `adapted` (a LoRA adapter is to be merged) always the released model. Only one is named: the
    other is the released model's. Raises UserError as find_checkpoint does."""
    if config is None and ckpt is None and not (adapted or DEFAULT_CKPT.exists()) and MINI_CKPT.exists():
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(HUB_REPO, HUB_FILE), str):
            print(
                f"{DEFAULT_CKPT} is missing: using the miniature model, which paints 64 x 64 pixels of a small world "
                "of shapes; --ckpt hub fetches the released model",
                file=sys.stderr,
            )
            return MINI_CONFIG, MINI_CKPT
    return DEFAULT_CONFIG if config is None else config, find_checkpoint(ckpt)


def find_checkpoint(name: str | os.PathLike | None = None) -> Path:
    """Finds a checkpoint.

    name: the path of the user's file or of one that comes with the project; "hub": the released model, from the hub's
    cache or downloaded; None: the released model in DEFAULT_CKPT if it exists, else as "hub".

    Raises UserError if the hub cannot be reached, with the places to get the file from and to put it."""
    if name not in (None, "hub"):
        return own_or_shipped(name)
    if name is None and DEFAULT_CKPT.exists():
        return DEFAULT_CKPT
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
