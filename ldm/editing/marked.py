"""A photo with the regions to paint in it and the references that go into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ldm.editing.options import Blending, Placement
from ldm.editing.pictures import Picture, as_picture
from ldm.editing.references import References, as_reference, learned_token
from ldm.editing.regions import Region
from ldm.images import have_same_proportions, name_of, upright_alpha, upright_photo, upright_rgb
from ldm.segmentation.objects import without_background
from ldm.util import UserError


@dataclass(frozen=True)
class MarkedPhoto:
    """photo: RGB, upright, in its own colour space (see upright_photo); masks: of its regions, L, 255 = paint, upright,
    of the photo's size; references: for each region the pictures of its object, as opened; has_alpha_region: a region
    was given by the photo's transparency; control: a picture of edges, for instance, RGB, upright, of the photo's
    proportions (ldm.methods.control)."""

    photo: Image.Image
    masks: tuple[Image.Image, ...]
    references: tuple[tuple[Image.Image, ...], ...]
    has_alpha_region: bool = False
    control: Image.Image | None = None

    @classmethod
    def mark(
        cls,
        image: Picture,
        regions: Sequence[Region],
        references: Sequence[References],
        placement: Placement = Placement(),
        control: Picture | None = None,
    ) -> MarkedPhoto:
        """references: one for each region, or one for all; control: a control picture of the image's proportions.

        Raises UserError: a region that is not in the image, a wrong number of references; TypeError: not pictures."""
        if not all(isinstance(each, Sequence) and not isinstance(each, str) for each in (regions, references)):
            raise TypeError("regions and references are lists")
        image = as_picture(image, "image")
        groups = [tuple(map(as_reference, each if isinstance(each, tuple) else (each,))) for each in references]
        if not all(groups):
            raise TypeError("a tuple of references is empty: give one or more pictures of the object")
        if not all(isinstance(region, Region) for region in regions):
            raise TypeError("regions are of the class ldm.editing.regions.Region")
        if placement.reference_cutout:
            groups = [tuple(_cut_out(picture, placement.segment) for picture in group) for group in groups]
        if len(groups) == 1:
            groups *= len(regions)
        if len(groups) != len(regions):
            raise UserError(f"there are {len(regions)} regions and {len(groups)} references: give one for each region")
        if placement.together and len(regions) < 2:
            raise UserError("together is for two regions or more, but there is one: mark another, or leave it out")
        if isinstance(placement.together, tuple) and len(placement.together) != len(regions):
            raise UserError(
                f"together has {len(placement.together)} scales for {len(regions)} regions: give one for each, or none"
            )
        if placement.mix is not None and any(len(group) not in (2, 3) for group in groups):
            raise UserError("mix is of two references, or of three: give each region as many, or leave it out")
        masks = tuple(region.mask_in(image, placement) for region in regions)
        photo, has_alpha = upright_photo(image), any(region.alpha for region in regions)
        return cls(photo, masks, tuple(groups), has_alpha, None if control is None else _control(control, photo))

    def blending(self, chosen: Blending) -> Blending:
        """The chosen blending for this photo. If its region was erased, there is nothing to blend with: the band's
        default width is then 0."""
        return replace(chosen, feather=0.0) if self.has_alpha_region and chosen.feather is None else chosen


def _control(picture: Picture, photo: Image.Image) -> Image.Image:
    """Raises UserError: another shape than the photo's."""
    opened = as_picture(picture, "control image")
    control = upright_rgb(opened, "black")
    if not have_same_proportions(control, photo):
        raise UserError(
            f"{name_of(opened, 'control image')} is {control.width} x {control.height} but the photo is {photo.width} x"
            f" {photo.height}: use one with the photo's proportions"
        )
    return control


def _cut_out(reference: Image.Image, segment: str | None) -> Image.Image:
    """Without its background, unless it has none already, as a learned token. Raises UserError."""
    if learned_token(reference) is not None:
        return reference
    alpha = upright_alpha(reference)
    has_none = alpha is not None and int(np.asarray(alpha).min()) < 128
    return reference if has_none else without_background(reference, segment)
