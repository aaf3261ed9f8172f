"""References: an object cut out of its background, and how a picture that is no square becomes one."""

from __future__ import annotations

from PIL import Image, ImageOps

from ldm.conventions import CLIP_MEAN
from ldm.images import upright_alpha, upright_mask, upright_rgb
from ldm.util import UserError

FITS = ("squash", "pad", "crop")
NEUTRAL = tuple(round(255 * level) for level in CLIP_MEAN)  # RGB; 0 as CLIP sees it


def check_fit(fit: str) -> None:
    """Raises UserError for a name that there is not."""
    if fit not in FITS:
        raise UserError(f"reference_fit {fit!r} is unknown; use one of {', '.join(FITS)}")


def cut_out(reference: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture and a mask of it (255 = the object) -> RGBA, transparent around the object: a reference without its
    background. Raises UserError as upright_mask does."""
    picture, white = upright_rgb(reference), upright_mask(mask, reference)
    if white.size != picture.size:
        white = white.resize(picture.size, Image.Resampling.BILINEAR)
    picture.putalpha(white)
    return picture


def fit_reference(reference: Image.Image, fit: str = "squash") -> Image.Image:
    """A picture of any size and mode -> RGB, to be squashed to CLIP's square.

    A transparent one is cut to what is opaque, and NEUTRAL around it. fit: "squash" leaves the proportions to the
    squashing, as published; "pad" adds NEUTRAL to make a square; "crop" takes the central square.
    Raises UserError: nothing is opaque, an unknown fit."""
    check_fit(fit)
    picture, alpha = upright_rgb(reference, NEUTRAL), upright_alpha(reference)
    if alpha is not None:
        box = alpha.point([0] * 128 + [255] * 128).getbbox()
        if box is None:
            raise UserError("the reference is transparent all over; give one that shows the object")
        picture = picture.crop(box)
    if fit == "squash":
        return picture
    side = max(picture.size) if fit == "pad" else min(picture.size)
    if fit == "pad":
        return ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color=NEUTRAL)
    return ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
