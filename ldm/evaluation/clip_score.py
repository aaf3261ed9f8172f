"""The region of a result against its reference, as the cosine of their features, CLIP's (the paper's CLIP score) and
DINO's, or of their pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.conventions import normalise_clip, pixels_to_tensor, resize_tensor


def published_crop(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The published region (r0, r1, c0, c1) of a mask (H,W) uint8, ends exclusive: its corners are the first and the
    last pixel that are 255, read row by row, so that the last row and column are left out, and a region that is no
    rectangle may lose more. None where nothing is left, at which the published code failed."""
    assert mask.dtype == np.uint8 and mask.ndim == 2, (mask.dtype, mask.shape)
    rows, columns = np.nonzero(mask == 255)
    if not len(rows) or rows[0] >= rows[-1] or columns[0] >= columns[-1]:
        return None
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(r0, r1, c0, c1), ends exclusive, of all of a mask (H,W) uint8 that is painted, 128 or more. None: nothing is."""
    rows, columns = (np.flatnonzero((mask >= 128).any(axis)) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1) if len(rows) else None


def clip_region(result: Image.Image, mask: np.ndarray, size: int = 224) -> np.ndarray | None:
    """PIL RGB (H,W) and its mask -> (3,size,size) as the published score saw it: normalised, cut out, and only then
    resized, bilinear without antialias. None where the published crop is empty."""
    crop = published_crop(mask)
    if crop is None:
        return None
    r0, r1, c0, c1 = crop
    return resize_tensor(normalise_clip(pixels_to_tensor(result))[None, :, r0:r1, c0:c1], (size, size))[0].numpy()


def clip_reference(reference: Image.Image, size: int = 224) -> np.ndarray:
    """PIL RGB -> (3,size,size), normalised, then resized like the region."""
    return resize_tensor(normalise_clip(pixels_to_tensor(reference))[None], (size, size))[0].numpy()


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Features (B,D) twice -> the cosine (B,) of the angle between them; times 100 it is the CLIP score."""
    return F.cosine_similarity(a.to(torch.float64), b.to(torch.float64), dim=-1)


def copy_paste(region: Image.Image, reference: Image.Image) -> float:
    """How much of the reference's pixels reappears in place: the correlation, -1 to 1, of the painted region's colours
    with those of the reference squashed to its size. 1 is what pasting it there gives, about 0 what chance does."""
    pasted = reference.resize(region.size, Image.Resampling.BILINEAR)
    a, b = (pixels_to_tensor(picture).double() for picture in (region, pasted))
    a, b = (x - x.mean(dim=(1, 2), keepdim=True) for x in (a, b))
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
