"""ComfyUI's tensors and our pictures.

IMAGE: (B,H,W,C) float, 0 to 1; C = 3 RGB, 4 RGBA as of Join Image with Alpha, 1 grey
MASK: (B,H,W) float, 1 = paint"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pictures_of(images: Tensor) -> list[Image.Image]:
    """IMAGE -> one picture for each of its entries."""
    levels = images.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()
    return [Image.fromarray(each.squeeze(-1) if each.shape[-1] == 1 else each) for each in levels]


def masks_of(masks: Tensor) -> list[Image.Image]:
    """MASK, or a single one as (H,W) -> L, 255 = paint, for each of its entries."""
    return pictures_of(masks.reshape(-1, *masks.shape[-2:], 1))


def image_of(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> IMAGE (B,H,W,3), or L pictures -> (B,H,W)."""
    return torch.from_numpy(np.stack([np.asarray(each) for each in pictures])).float() / 255
