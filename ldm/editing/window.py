"""Where in a photo an edit happens: a window around the mask, and how the painted window goes back into the photo."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from PIL import Image, ImageChops

from ldm.editing.background import blend
from ldm.editing.options import WHOLE_PHOTO, Blending, Context
from ldm.pictures.colour import from_srgb, in_srgb
from ldm.util import UserError

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 are the first column and row outside

MASK_SHARE = 0.2  # of the window, covered by the mask; the masks of training cover 2% to 80%
MARGIN = 1.25  # least length of the window's sides, in lengths of the mask's box
MIN_SIDE = 0.25  # of the model's native size: a smaller window has too little detail


def window_around(mask: Image.Image, native: int, context: Context = None, aspect: float = 1.0) -> Box:
    """The part of a photo to edit.

    mask: L of the photo's size, 255 = paint, no grey; native: side of the pictures that the model was made for, pixels;
    context: length of the window in lengths of the mask's box, "photo" for the whole photo, or None for so much that
    the mask covers about MASK_SHARE of it; aspect: width / height of the window.

    The window has this aspect and lies inside the photo, shifted away from its border. Where the photo is too short for
    it, the window takes the photo's whole length, and its aspect differs."""
    if context == WHOLE_PHOTO:
        return (0, 0, *mask.size)
    box = mask.getbbox()
    assert box is not None  # masks have white in them
    x0, y0, x1, y1 = box
    around = max(y1 - y0, (x1 - x0) / aspect)  # height of the smallest window of this aspect that holds the box
    if context is None:
        area = mask.histogram()[255]
        height = max(math.sqrt(area / MASK_SHARE / aspect), MARGIN * around, MIN_SIDE * native)
        largest = min(mask.height, mask.width / aspect)  # height of the largest window of this aspect
        if MARGIN * around <= largest:
            height = min(height, largest)
    else:
        height = float(context) * around
    width, height = min(round(height * aspect), mask.width), min(round(height), mask.height)
    left = min(max(round((x0 + x1 - width) / 2), 0), mask.width - width)
    top = min(max(round((y0 + y1 - height) / 2), 0), mask.height - height)
    return left, top, left + width, top + height


@dataclass(frozen=True)
class PlacedWindow:
    """The place of an edit.

    photo: RGB, upright, as ldm.images.upright_photo makes it; mask: L of its size, 0 or 255 = paint; window: the part
    of the photo to edit."""

    photo: Image.Image
    mask: Image.Image
    window: Box

    @classmethod
    def around(
        cls, photo: Image.Image, mask: Image.Image, native: int, context: Context = None, aspect: float = 1.0
    ) -> PlacedWindow:
        """photo: RGB, upright; mask: L of its size, as Region.mask_in makes it; the rest as in window_around."""
        assert mask.size == photo.size
        binary = mask.point([0] * 128 + [255] * 128)
        return cls(photo, binary, window_around(binary, native, context, aspect))

    def within(self, region: Image.Image) -> PlacedWindow:
        """The same window with a smaller mask. region: L, 255 = paint, the mask inside the window at any size.

        Raises UserError: nothing is left."""
        x0, y0, x1, y1 = self.window
        region = region.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR).point([0] * 128 + [255] * 128)
        mask = Image.new("L", self.mask.size)
        mask.paste(ImageChops.darker(region, self.region), (x0, y0))
        if mask.getbbox() is None:
            raise UserError("nothing in the region is to be changed: mark what is by a mask or a polygon")
        return replace(self, mask=mask)

    @property
    def picture(self) -> Image.Image:
        """The photo inside the window, in sRGB."""
        return in_srgb(self.photo.crop(self.window))

    @property
    def region(self) -> Image.Image:
        """The mask inside the window."""
        return self.mask.crop(self.window)

    def part_of(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """What another picture of the photo's proportions has in the window, at this size (width, height)."""
        x0, x1 = (picture.width * x / self.photo.width for x in self.window[::2])
        y0, y1 = (picture.height * y / self.photo.height for y in self.window[1::2])
        return picture.resize(size, Image.Resampling.LANCZOS, box=(x0, y0, x1, y1))

    def paste(self, painted: Image.Image, blending: Blending = Blending()) -> Image.Image:
        """The window as the model painted it, of any size, in sRGB -> the whole photo with it, in the photo's colour
        space and with its profile."""
        x0, y0, x1, y1 = self.window
        profile = self.photo.info.get("icc_profile")
        if painted.size != (x1 - x0, y1 - y0):
            painted = painted.resize((x1 - x0, y1 - y0), Image.Resampling.LANCZOS)
        painted = from_srgb(painted, profile)
        # One more pixel around it: a mask that reaches the window's edge has its own edge there, unless the photo ends.
        outer = max(x0 - 1, 0), max(y0 - 1, 0), min(x1 + 1, self.photo.width), min(y1 + 1, self.photo.height)
        source = self.photo.crop(outer)
        new, known = source.copy(), Image.new("L", source.size)
        new.paste(painted, (x0 - outer[0], y0 - outer[1]))
        known.paste(255, (x0 - outer[0], y0 - outer[1], x1 - outer[0], y1 - outer[1]))
        result = Image.new("RGB", self.photo.size)
        result.paste(self.photo)
        result.paste(blend(source, new, self.mask.crop(outer), blending, known), outer[:2])
        if profile and profile[16:20] == b"RGB ":
            result.info["icc_profile"] = profile
        return result
