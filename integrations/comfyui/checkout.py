"""Where the nodes find the package `ldm`: in the checkout that this folder is part of, or else installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ldm"  # resolved: the folder may be linked into custom_nodes


def find_package() -> None:
    """Makes `import ldm` find the checkout's package, but nothing else of the checkout: ComfyUI has a main.py of its
    own. Raises ImportError: there is no such package, or another pack has loaded its own `ldm`."""
    if "ldm" not in sys.modules and (PACKAGE / "pipeline.py").is_file():
        spec = importlib.util.spec_from_file_location("ldm", PACKAGE / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["ldm"] = module
        spec.loader.exec_module(module)
    found = importlib.util.find_spec("ldm")
    if found is None:
        raise ImportError(
            "the package paint-by-example is missing: link this folder from a checkout of it instead of copying it, or"
            " pip install the checkout"
        )
    if importlib.util.find_spec("ldm.pipeline") is None:
        raise ImportError(f"{found.origin} has the name of this pack's package, ldm: disable the pack that brings it")
