"""The photo as a browser paints on it, and masks as the brush's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from PIL import Image

from ldm.images import upright_mask, upright_rgb
from ldm.util import UserError
from ldm.web.examples import Example
from ldm.web.uploads import fit_within, open_upload

CANVAS_SIDE = 1024  # longer side of the photo to paint on, pixels
BRUSH_COLOUR = "#e40084"  # a colour that photos rarely have
BRUSH_ALPHA = 128  # in the middle of a stroke; its soft edge has less
BRUSH = f"{BRUSH_COLOUR}{BRUSH_ALPHA:02x}"


class CanvasValue(TypedDict):
    """The value of a gr.ImageEditor."""

    background: Image.Image
    layers: list[Image.Image]
    composite: Image.Image


def has_strokes(layers: Sequence[Image.Image]) -> bool:
    return any(layer.convert("RGBA").getchannel("A").getbbox() for layer in layers)


def mask_from_layers(layers: Sequence[Image.Image], image: Image.Image) -> Image.Image:
    """The brush's layers (RGBA, transparent where not painted) -> mask (L, 255 = paint) of the image's upright size.

    Raises UserError where nothing is painted."""
    size = upright_rgb(image).size
    mask = Image.new("L", size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BILINEAR)
        mask.paste(255, mask=alpha.point([255 * (level >= BRUSH_ALPHA // 2) for level in range(256)]))
    if not mask.getbbox():
        raise UserError("nothing is painted on the photo: brush over what the reference should replace")
    return mask


def canvas_value(image: Image.Image, mask: Image.Image | None = None) -> CanvasValue:
    """The photo for a canvas, with the mask, if given, as a stroke of the brush. Raises UserError as
    ldm.images.upright_mask does."""
    photo = fit_within(image, CANVAS_SIDE)
    if mask is None:
        return {"background": photo, "layers": [], "composite": photo}
    white = upright_mask(mask, image).resize(photo.size, Image.Resampling.BILINEAR)
    layer = Image.new("RGBA", photo.size, BRUSH_COLOUR)
    layer.putalpha(white.point([BRUSH_ALPHA * (level >= 128) for level in range(256)]))
    return {"background": photo, "layers": [layer], "composite": Image.alpha_composite(photo.convert("RGBA"), layer)}


def thumbnail(example: Example, width: int = 240) -> Image.Image:
    """An example as one small picture: the photo, its region tinted, with the reference in the corner."""
    photo = canvas_value(open_upload(example.image, "photo"), open_upload(example.mask, "mask"))["composite"]
    photo = photo.convert("RGB").resize((width, round(width * photo.height / photo.width)), Image.Resampling.BICUBIC)
    inset = fit_within(open_upload(example.reference, "reference"), width).resize((width // 3, width // 3))
    left, top = photo.width - inset.width, photo.height - inset.height
    photo.paste("white", (left - 3, top - 3, *photo.size))
    photo.paste(inset, (left, top))
    return photo
