"""What stays of the photo around a painted region.

| background | outside the mask                        | inside                                              |
|------------|-----------------------------------------|-----------------------------------------------------|
| exact      | the photo's own pixels, bit for bit     | painted; fades into the photo over a band along its edge |
| feather    | the same, but for a band along the mask | painted, but for a band; on the edge half and half  |
| poisson    | the photo's own pixels, bit for bit     | the same as exact, after fitting the colours to the photo's |
| none       | all of the window as the model gives it | painted                                             |

Outside the window, every one keeps the photo bit for bit."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from ldm.util import UserError

BACKGROUNDS = ("exact", "feather", "poisson", "none")
BAND = 1 / 64  # default width of the band, of the window's shorter side: one latent pixel at 512


def check_background(background: str, feather: float | None = None) -> None:
    """Raises UserError for a name or a width that there is not."""
    if background not in BACKGROUNDS:
        raise UserError(f"background {background!r} is unknown; use one of {', '.join(BACKGROUNDS)}")
    if feather is not None and not 0 <= feather <= 10_000:
        raise UserError(f"feather {feather} is out of range; use 0 to 10000 pixels")


def depth(mask: np.ndarray) -> np.ndarray:
    """mask (H,W), bool -> (H,W) float32, pixels from each True one to the nearest False one: 1 along the edge, 0 where
    False. The picture's border is no edge."""
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def opacity(mask: np.ndarray, background: str, band: float, known: np.ndarray | None = None) -> np.ndarray:
    """mask (H,W), bool, True = paint -> (H,W) float32, 0 photo to 1 painted. band: its width, pixels.

    feather: rises over the band outside the mask and the band inside, and nowhere faster than from 0 where nothing is
    painted; known (H,W), bool: where something is (None: everywhere). Others: inside the mask alone."""
    inside = depth(mask)
    if background != "feather":
        deepest = float(inside.max())
        return np.clip(inside / (min(band, deepest / 2) + 1), 0, 1)  # a thin region has a thin band
    signed = np.where(mask, inside - 0.5, 0.5 - depth(~mask))
    if band == 0:
        return mask.astype(np.float32)
    if known is not None:
        signed = np.minimum(signed, depth(known) - 0.5 - band)
    return np.clip(signed / (2 * band) + 0.5, 0, 1)


def poisson(photo: np.ndarray, painted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 each, mask (H,W), bool -> painted, its colours fitted to the photo along the mask's edge
    (Perez et al. 2003)."""
    if mask.all():
        return painted
    # Mirrored beyond the picture's border, where a mask that reaches it has no edge: there is nothing to fit to there.
    pad = 2 + min(mask.shape) // 4
    photo, painted = (cv2.copyMakeBorder(each, *[pad] * 4, cv2.BORDER_REFLECT) for each in (photo, painted))
    white = cv2.copyMakeBorder(mask.astype(np.uint8) * 255, *[pad] * 4, cv2.BORDER_REFLECT)
    white[[0, 1, -2, -1]] = white[:, [0, 1, -2, -1]] = 0  # OpenCV asks for pixels around the mask
    x, y, width, height = cv2.boundingRect(white)
    fitted = cv2.seamlessClone(painted, photo, white, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE)
    return fitted[pad:-pad, pad:-pad]


def blend(
    photo: Image.Image,
    painted: Image.Image,
    mask: Image.Image,
    background: str = "exact",
    feather: float | None = None,
    known: Image.Image | None = None,
) -> Image.Image:
    """photo, painted (RGB) and mask (L, 255 = paint, no grey), of one size -> RGB; background: see the table above;
    known (L): 255 where painted is more than the photo (None: everywhere).

    feather: width of the band, pixels (default: BAND of the shorter side). Raises UserError as check_background."""
    check_background(background, feather)
    if background == "none":
        return painted
    paint = np.asarray(mask) > 127
    old, new = np.asarray(photo), np.asarray(painted)
    if background == "poisson":
        new = poisson(old, new, paint)
    band = BAND * min(photo.size) if feather is None else feather
    alpha = opacity(paint, background, band, None if known is None else np.asarray(known) > 127)[..., None]
    mixed = old + alpha * (new.astype(np.float32) - old)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
