"""ComfyUI's tensors and our pictures.

IMAGE: (B,H,W,C) float, 0 to 1; C = 3 RGB, 4 RGBA as of Join Image with Alpha, 1 grey
MASK: (B,H,W) float, 1 = paint"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.editing.pictures import as_picture


def pictures_of(images: Tensor, name: str = "image") -> list[Image.Image]:
    """IMAGE -> one picture for each of its entries; values beyond 0 to 1, as of resampling, are clipped.

    Raises TypeError: other shapes, values that are not numbers."""
    return [as_picture(each.float().clamp(0, 1).movedim(-1, 0), name) for each in images]


def masks_of(masks: Tensor) -> list[Image.Image]:
    """MASK, or a single one as (H,W) -> L, 255 = paint, for each of its entries."""
    return pictures_of(masks.reshape(-1, *masks.shape[-2:], 1), "mask")


def image_of(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> IMAGE (B,H,W,3), or L pictures -> (B,H,W)."""
    return torch.from_numpy(np.stack([np.asarray(each) for each in pictures])).float() / 255
