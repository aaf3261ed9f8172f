"""Which checkpoint and config an edit uses where none is named, and where they lie."""

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
    """Config and checkpoint, where one of them or both are not named.

    Neither: the released model if it is at hand, in DEFAULT_CKPT or the hub's cache; or else the miniature one, which
    is told, unless the model is to be `adapted`, as the released one can. A config alone goes with the released model's
    weights, a checkpoint alone with its config. Raises UserError as find_checkpoint does."""
    if config is None and ckpt is None and not (adapted or DEFAULT_CKPT.exists()) and MINI_CKPT.exists():
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(HUB_REPO, HUB_FILE), str):
            print(
                f"{DEFAULT_CKPT} is not there: the miniature model takes its place, 64 x 64 pixels of a small world of "
                "painted shapes; --ckpt hub fetches the released model",
                file=sys.stderr,
            )
            return MINI_CONFIG, MINI_CKPT
    return DEFAULT_CONFIG if config is None else config, find_checkpoint(ckpt)


def find_checkpoint(name: str | os.PathLike | None = None) -> Path:
    """A path: that file, or the one of this name that comes with the project; None: the released model in DEFAULT_CKPT,
    or else from the hub; "hub": from the hub.

    Raises UserError, saying where to get the file and where to put it, when the hub cannot be reached."""
    if name not in (None, "hub"):
        return own_or_shipped(name)
    if name is None and DEFAULT_CKPT.exists():
        return DEFAULT_CKPT
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    print(f"fetching {HUB_FILE} (several GB, once) of {HUB_REPO} from the hub", file=sys.stderr)
    logging.set_verbosity_error()  # one sentence at the end says what its retries would
    try:
        return Path(hf_hub_download(HUB_REPO, HUB_FILE))
    except Exception as error:  # the hub's client raises those of its HTTP library as they are
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the released model could not be fetched from the hub ({reason}); download https://huggingface.co/"
            f"{HUB_REPO}/resolve/main/{HUB_FILE} to {DEFAULT_CKPT}, or name a file with --ckpt"
        ) from error
