"""Where in a photo an edit happens: a window around the mask, and how the window's picture goes back into the photo."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from ldm.editing.background import blend
from ldm.images import upright_mask, upright_rgb
from ldm.util import UserError

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the latter two outside
Context = float | str | None

SHARE = 0.2  # of the window that the mask is to cover; the masks of training cover 2% to 80%
MARGIN = 1.25  # the window has at least so many times the sides of the mask's box
MOST = 1000.0  # of a context
LEAST = 0.25  # least side of a window, of the model's native size: a smaller one has no detail to go by
PHOTO = "photo"  # as context: the whole photo, as published


def check_context(context: Context) -> Context:
    """Raises UserError for what is no context."""
    if context not in (None, PHOTO) and not (isinstance(context, int | float) and 1 <= context <= MOST):
        raise UserError(
            f"context {context} is out of range; use {PHOTO}, or 1 to {MOST:.0f}: how many times the mask's box"
        )
    return context


def window_around(mask: Image.Image, native: int, context: Context = None, aspect: float = 1.0) -> Box:
    """The part of a photo to edit.

    mask: L of the photo's size, 255 = paint, no grey; native: side of the pictures that the model was made for, pixels;
    context: how many times as long as the mask's box the window is, "photo" for all of the photo, or None: so long that
    the mask covers about SHARE of it; aspect: width / height of the window.

    The window has that aspect and lies in the photo, shifted away from its border. Only where the photo is too short
    for it does it take the whole length there, and has another aspect."""
    if check_context(context) == PHOTO:
        return (0, 0, *mask.size)
    x0, y0, x1, y1 = mask.getbbox()
    around = max(y1 - y0, (x1 - x0) / aspect)  # height of the smallest window of this aspect that holds the box
    if context is None:
        area = mask.histogram()[255]
        height = max(math.sqrt(area / SHARE / aspect), MARGIN * around, LEAST * native)
        most = min(mask.height, mask.width / aspect)  # of a window of this aspect
        if MARGIN * around <= most:
            height = min(height, most)
    else:
        height = context * around
    width, height = min(round(height * aspect), mask.width), min(round(height), mask.height)
    left = min(max(round((x0 + x1 - width) / 2), 0), mask.width - width)
    top = min(max(round((y0 + y1 - height) / 2), 0), mask.height - height)
    return left, top, left + width, top + height


@dataclass(frozen=True)
class Placed:
    """An edit's place: the photo (RGB, upright), its mask (L, the photo's size, 0 or 255 = paint), the window."""

    photo: Image.Image
    mask: Image.Image
    window: Box

    @classmethod
    def of(
        cls, image: Image.Image, mask: Image.Image, native: int, context: Context = None, aspect: float = 1.0
    ) -> Placed:
        """image and mask as opened; the rest as in window_around. Raises UserError: a mask of another shape than the
        photo's, or with nothing to paint."""
        white, photo = upright_mask(mask, image), upright_rgb(image)
        if white.size != photo.size:
            white = white.resize(photo.size, Image.Resampling.BILINEAR)
        white = white.point([0] * 128 + [255] * 128)
        return cls(photo, white, window_around(white, native, context, aspect))

    @property
    def source(self) -> Image.Image:
        """The window of the photo."""
        return self.photo.crop(self.window)

    @property
    def region(self) -> Image.Image:
        """The window of the mask."""
        return self.mask.crop(self.window)

    def paste(self, painted: Image.Image, background: str = "exact", feather: float | None = None) -> Image.Image:
        """The window's picture as the model painted it, of any size -> the whole photo with it; the rest as in
        ldm.editing.background.blend. A colour profile of the photo stays with it."""
        x0, y0, x1, y1 = self.window
        if painted.size != (x1 - x0, y1 - y0):
            painted = painted.resize((x1 - x0, y1 - y0), Image.Resampling.LANCZOS)
        # and a pixel around it: a mask that reaches the window's edge has its own edge there, if it is not the photo's
        outer = max(x0 - 1, 0), max(y0 - 1, 0), min(x1 + 1, self.photo.width), min(y1 + 1, self.photo.height)
        source = self.photo.crop(outer)
        new, known = source.copy(), Image.new("L", source.size)
        new.paste(painted, (x0 - outer[0], y0 - outer[1]))
        known.paste(255, (x0 - outer[0], y0 - outer[1], x1 - outer[0], y1 - outer[1]))
        result = Image.new("RGB", self.photo.size)
        result.paste(self.photo)
        result.paste(blend(source, new, self.mask.crop(outer), background, feather, known), outer[:2])
        profile = self.photo.info.get("icc_profile")
        if profile and profile[16:20] == b"RGB ":  # a profile of CMYK would not fit what is RGB by now
            result.info["icc_profile"] = profile
        return result
