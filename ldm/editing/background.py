"""What stays of the photo around a painted region.

| background | outside the mask                        | inside                                                     |
|------------|-----------------------------------------|------------------------------------------------------------|
| exact      | the photo's own pixels, bit for bit     | painted; fades into the photo over a band along its edge   |
| feather    | the photo, except for a band            | painted, except for a band; half and half on the edge      |
| poisson    | the photo's own pixels, bit for bit     | as exact, after fitting the painted colours to the photo's |
| none       | the whole window as the model paints it | painted                                                    |

Outside the window every background keeps the photo bit for bit."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from ldm.editing.options import Blending

BAND = 1 / 64  # default width of the band, of the window's shorter side: one latent pixel at 512


def distance_to_edge(mask: np.ndarray) -> np.ndarray:
    """mask (H,W), bool -> (H,W) float32: distance of each True pixel to the nearest False one, pixels; 0 where False.

    It is 1 along the edge. The picture's border is not an edge."""
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def opacity(mask: np.ndarray, background: str, band: float, known: np.ndarray | None = None) -> np.ndarray:
    """mask (H,W), bool, True = paint -> (H,W) float32 from 0 (photo) to 1 (painted). band: its width, pixels.

    feather: rises over a band outside the mask and one inside; it stays 0 where nothing was painted. Others: rises
    inside the mask alone. known (H,W), bool: where something was painted (None: everywhere)."""
    inside = distance_to_edge(mask)
    if background != "feather":
        deepest = float(inside.max())
        return np.clip(inside / (min(band, deepest / 2) + 1), 0, 1)  # a thin region has a thin band
    signed = np.where(mask, inside - 0.5, 0.5 - distance_to_edge(~mask))
    if band == 0:
        return mask.astype(np.float32)
    if known is not None:
        signed = np.minimum(signed, distance_to_edge(known) - 0.5 - band)
    return np.clip(signed / (2 * band) + 0.5, 0, 1)


def poisson(photo: np.ndarray, painted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """photo, painted (H,W,3) uint8; mask (H,W), bool -> painted, its colours fitted to the photo along the mask's edge
    (Perez et al. 2003)."""
    if mask.all():
        return painted
    # Mirrored beyond the picture's border: a mask that reaches the border has no edge there, and nothing to fit to.
    pad = 2 + min(mask.shape) // 4
    photo, painted, white = (
        cv2.copyMakeBorder(each, pad, pad, pad, pad, cv2.BORDER_REFLECT)
        for each in (photo, painted, mask.astype(np.uint8) * 255)
    )
    white[[0, 1, -2, -1]] = white[:, [0, 1, -2, -1]] = 0  # OpenCV needs pixels around the mask
    return _clone(photo, painted, white)[pad:-pad, pad:-pad]


def _clone(photo: np.ndarray, painted: np.ndarray, white: np.ndarray) -> np.ndarray:
    """photo, painted (H,W,3), white (H,W), uint8; white is 0 in the outer two rows and columns."""
    x, y, width, height = cv2.boundingRect(white)
    if min(width, height) < 3:  # OpenCV fails: three pixels of each
        near = np.s_[y - 2 : y + height + 2, x - 2 : x + width + 2]
        fitted = photo.copy()
        fitted[near] = _clone(*(each[near].repeat(3, 0).repeat(3, 1) for each in (photo, painted, white)))[1::3, 1::3]
        return fitted
    return cv2.seamlessClone(painted, photo, white, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE)


def blend(
    photo: Image.Image,
    painted: Image.Image,
    mask: Image.Image,
    blending: Blending = Blending(),
    known: Image.Image | None = None,
) -> Image.Image:
    """photo, painted (RGB) and mask (L, 255 = paint, no grey), all of one size -> RGB, by the table above.

    known (L): 255 where `painted` was painted and is not just the photo (None: everywhere)."""
    if blending.background == "none":
        return painted
    paint = np.asarray(mask) > 127
    old, new = np.asarray(photo), np.asarray(painted)
    if blending.background == "poisson":
        new = poisson(old, new, paint)
    band = BAND * min(photo.size) if blending.feather is None else blending.feather
    painted_there = None if known is None else np.asarray(known) > 127
    alpha = opacity(paint, blending.background, band, painted_there)[..., None]
    mixed = old + alpha * (new.astype(np.float32) - old)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
