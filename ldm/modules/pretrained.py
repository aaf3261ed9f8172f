"""Networks of other projects, from the hub or from a folder as it is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ldm.storage import local
from ldm.util import UserError, listing


def load_pretrained(
    name: str, source: str | os.PathLike, repo: str, network: Any, *parts: Any, others: str = ""
) -> tuple[Any, ...]:
    """The network and the parts, such as its processor, each by the `from_pretrained` of its class.

    name: what it is, in messages; source: a folder (config.json, the weights), or "hub", which downloads `repo` once;
    others: further values of source, in messages. Raises UserError: a missing folder, one without this network, no
    connection."""
    from_hub = source == "hub"
    folder = repo if from_hub else os.fspath(local(source))
    if not from_hub and not (Path(folder) / "config.json").is_file():
        raise UserError(f"{name} {source} has no config.json: use {others}hub, or the folder of {repo}")
    try:
        loaded, report = network.from_pretrained(folder, output_loading_info=True, local_files_only=not from_hub)
        rest = [part.from_pretrained(folder, local_files_only=not from_hub) for part in parts]
    except Exception as error:  # transformers and the hub raise many kinds
        reason = str(error).split("\n")[0]
        cure = "connect to the network once, or give a folder" if from_hub else f"download {repo} again"
        raise UserError(f"{name} {source} cannot be loaded ({reason:.200}): {cure}") from error
    if missing := report["missing_keys"] or report["mismatched_keys"]:  # they would stay random
        raise UserError(f"{name} {source} lacks {listing(map(str, missing))}: download {repo} again")
    return loaded, *rest


def load_diffusers(name: str, folder: str | os.PathLike, example: str, *networks: Any) -> Any:
    """A network of diffusers from its folder: config.json, and safetensors, so that no code of it runs.

    name: what it is, in messages; example: what the folder should be; networks: classes, one of which it is.
    Raises UserError: a missing or damaged folder, another network."""
    folder = local(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} {folder} has no config.json: give the folder of {example}")
    own = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    try:
        kind = json.loads((folder / "config.json").read_text())["_class_name"]
        network = {each.__name__: each for each in networks}.get(kind)
        loaded, report = network.from_pretrained(folder, **own) if network else (None, {})
    except Exception as error:  # diffusers raises many kinds
        reason = str(error).split("\n")[0]
        raise UserError(f"{name} {folder} cannot be loaded ({reason:.200}): download it again") from error
    if loaded is None:
        raise UserError(f"{name} {folder} is of the class {kind}: give the folder of {example}")
    if missing := report["missing_keys"]:  # they would stay random
        raise UserError(f"{name} {folder} lacks {listing(map(str, missing))}: download it again")
    return loaded
