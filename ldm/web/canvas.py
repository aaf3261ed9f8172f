"""The photo as a browser paints on it, and masks as the brush's layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm.images import upright_mask, upright_rgb
from ldm.util import UserError
from ldm.web.uploads import open_upload, within

SIDE = 1024  # longer side of the photo to paint on, pixels
COLOUR = "#e40084"  # of the brush; photos rarely have it
ALPHA = 128  # of the middle of a stroke; its soft edge has less
BRUSH = f"{COLOUR}{ALPHA:02x}"


def painted(layers: Sequence[Image.Image], image: Image.Image) -> Image.Image:
    """The brush's layers (RGBA, transparent where not painted) -> mask (L, 255 = paint) of the image's upright size.

    Raises UserError where nothing is painted."""
    size = upright_rgb(image).size
    mask = Image.new("L", size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BILINEAR)
        mask.paste(255, mask=alpha.point([255 * (level >= ALPHA // 2) for level in range(256)]))
    if not mask.getbbox():
        raise UserError("nothing is painted on the photo; brush over what the reference is to replace")
    return mask


def canvas_of(image: Image.Image, mask: Image.Image | None = None) -> dict:
    """The value of a gr.ImageEditor: the photo, with the mask on it as if it had been painted. Raises UserError as
    ldm.images.upright_mask does."""
    photo = within(image, SIDE)
    if mask is None:
        return {"background": photo, "layers": [], "composite": photo}
    white = upright_mask(mask, image).resize(photo.size, Image.Resampling.BILINEAR)
    layer = Image.new("RGBA", photo.size, COLOUR)
    layer.putalpha(white.point([ALPHA * (level >= 128) for level in range(256)]))
    return {"background": photo, "layers": [layer], "composite": Image.alpha_composite(photo.convert("RGBA"), layer)}


def thumbnail(image: Path, mask: Path, reference: Path, width: int = 240) -> Image.Image:
    """An example at a glance: the photo, its region tinted, with the reference in a corner."""
    photo = canvas_of(open_upload(image, "photo"), open_upload(mask, "mask"))["composite"].convert("RGB")
    photo = photo.resize((width, round(width * photo.height / photo.width)), Image.Resampling.BICUBIC)
    inset = within(open_upload(reference, "reference"), width).resize((width // 3, width // 3))
    corner = (photo.width - inset.width, photo.height - inset.height)
    photo.paste("white", (corner[0] - 3, corner[1] - 3, *photo.size))
    photo.paste(inset, corner)
    return photo
