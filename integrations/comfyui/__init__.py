"""Paint by Example as nodes of ComfyUI; ComfyUI reads the two mappings."""

from .checkout import find_package

find_package()

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: E402 - it imports what was found

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
