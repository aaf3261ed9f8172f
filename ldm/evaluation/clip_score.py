"""The similarity of a result's region and its reference: the cosine of their features (of CLIP's, in the paper's CLIP
score) or of their pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.conventions import normalise_clip, pixels_to_tensor, resize_tensor


def published_crop(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The region (r0, r1, c0, c1), ends exclusive, that the published code cuts out for a mask (H,W) uint8.

    Its corners are the first and the last pixel of 255 in reading order. So the last row and column are missing, and a
    region that is not a rectangle may lose more. None: the region is empty, and the published code fails."""
    assert mask.dtype == np.uint8 and mask.ndim == 2, (mask.dtype, mask.shape)
    rows, columns = np.nonzero(mask == 255)
    if not len(rows) or rows[0] >= rows[-1] or columns[0] >= columns[-1]:
        return None
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(r0, r1, c0, c1), ends exclusive, around all painted pixels of a mask (H,W) uint8, 128 or more. None: there are
    no such pixels."""
    rows, columns = (np.flatnonzero((mask >= 128).any(axis)) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1) if len(rows) else None


def clip_region(result: Image.Image, mask: np.ndarray, size: int = 224) -> np.ndarray | None:
    """PIL RGB (H,W) and its mask -> (3,size,size) as in the published score: normalised, cropped, and then resized,
    bilinear without antialias. None: the published crop is empty."""
    crop = published_crop(mask)
    if crop is None:
        return None
    r0, r1, c0, c1 = crop
    return resize_tensor(normalise_clip(pixels_to_tensor(result))[None, :, r0:r1, c0:c1], (size, size))[0].numpy()


def clip_reference(reference: Image.Image, size: int = 224) -> np.ndarray:
    """PIL RGB -> (3,size,size), normalised and then resized like the region."""
    return resize_tensor(normalise_clip(pixels_to_tensor(reference))[None], (size, size))[0].numpy()


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Features (B,D) twice -> their cosine (B,) in float64; the CLIP score is this times 100."""
    return F.cosine_similarity(a.to(torch.float64), b.to(torch.float64), dim=-1)


def copy_paste(region: Image.Image, reference: Image.Image) -> float:
    """The correlation, -1 to 1, of the painted region's pixels with those of the reference squashed to its size. It is
    1 where the reference is pasted, and about 0 for unrelated pictures."""
    pasted = reference.resize(region.size, Image.Resampling.BILINEAR)
    a, b = (pixels_to_tensor(picture).double() for picture in (region, pasted))
    a, b = (x - x.mean(dim=(1, 2), keepdim=True) for x in (a, b))
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
