"""What the model sees of edits, and where each goes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ldm.conventions import image_to_tensor, mask_to_tensor, reference_to_tensor, resize_tensor
from ldm.editing.window import Placed
from ldm.util import UserError


@dataclass(frozen=True)
class Inputs:
    """What the model sees of B edits."""

    image: Tensor  # (B,3,H,W) in [-1,1]
    mask: Tensor  # (B,1,H,W), 1 = keep
    reference: Tensor  # (R,3,S,S), CLIP-normalised
    counts: tuple[int, ...] = ()  # how many references each edit has, R in all; (): one each, R = B

    @property
    def inpaint_image(self) -> Tensor:
        """(B,3,H,W): the image, grey (0) where it is to be painted."""
        return self.image * self.mask


@dataclass(frozen=True)
class Planned:
    """One edit: its place in the photo, and what the model sees of it."""

    place: Placed
    inputs: Inputs


def size_for(
    image: Image.Image, native: int, multiple: int, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(H,W) at which to edit an upright image: as asked, else nearest to the image's shape and the native area among
    what the model can take, multiples of `multiple` pixels. Raises UserError for H and W that it cannot."""
    for name, value in (("H", height), ("W", width)):
        if value is not None and (value < multiple or value % multiple):
            near = max(multiple, round(value / multiple) * multiple)
            raise UserError(f"{name} = {value}: the model takes multiples of {multiple}; use {near}")
        if value is not None and value > 8 * native:
            raise UserError(f"{name} = {value}: is too large; use at most {8 * native}")
    shape, sides = image.width / image.height, range(multiple, 8 * native, multiple)
    sizes = [(h, w) for h in ([height] if height else sides) for w in ([width] if width else sides)]

    def misfit(size: tuple[int, int]) -> float:
        h, w = size
        return abs(math.log(w / h / shape)) + 0.1 * abs(math.log(h * w / native**2))

    return min(sizes, key=misfit)


def inputs_of(
    picture: Image.Image,
    white: Image.Image,
    references: Sequence[Image.Image],
    size: tuple[int, int],
    factor: int,
    square: int,
) -> Inputs:
    """One edit at size (H,W). picture (RGB), white (L, 255 = paint), references (RGB, of one object): of any sizes;
    factor: of the autoencoder; square: side of a reference as CLIP sees it, pixels.

    Raises UserError: a region that is too small at that size to be seen in the latent."""
    size = size[::-1]
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    keep = mask_to_tensor(white if white.size == size else white.resize(size, Image.Resampling.BILINEAR))[None]
    if resize_tensor(keep, (size[1] // factor, size[0] // factor)).min() == 1:
        raise UserError(
            f"mask: its region is less than {factor} pixels wide at {size[0]} x {size[1]}, too small for the model to "
            "see; make it larger, or H and W"
        )
    crops = torch.stack([reference_to_tensor(each, square) for each in references])
    return Inputs(image_to_tensor(picture)[None], keep, crops, (len(crops),))


def stack(edits: Sequence[Inputs]) -> Inputs:
    """Inputs of several edits of one size as one batch."""
    joined = (torch.cat([getattr(e, field) for e in edits]) for field in ("image", "mask", "reference"))
    return Inputs(*joined, tuple(n for e in edits for n in (e.counts or [1] * len(e.image))))
