"""What the model sees of edits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ldm.conventions import image_to_tensor, mask_to_tensor, pixels_to_tensor, reference_to_tensor, resize_tensor
from ldm.editing.options import Sampling
from ldm.editing.window import PlacedWindow
from ldm.fast.region import Rectangle
from ldm.util import UserError


@dataclass(frozen=True, eq=False)
class Condition:
    """How the references of a region become the token that it shows: their tokens' mean, or ldm.methods.tokens.mixed.

    learned: for each reference the learned token (M,D) in the place of the picture's own, or None
    mix: None, or how much, of two references or three; scale, strength: None, or the region's own"""

    learned: tuple[Tensor | None, ...] = (None,)
    mix: float | None = None
    scale: float | None = None
    strength: float | None = None

    def combine(self, tokens: Tensor) -> Tensor:
        """tokens (R,M,D) of the references' pictures -> c (M,D)."""
        if any(each is not None for each in self.learned):
            pairs = zip(self.learned, tokens, strict=True)
            tokens = torch.stack([own if each is None else each.to(own) for each, own in pairs])
        if self.mix is None:
            return tokens.mean(dim=0)
        from ldm.methods.tokens import mixed

        return mixed(tokens, self.mix)


@dataclass(frozen=True)
class Inputs:
    """What the model sees of B edits."""

    image: Tensor  # (B,3,H,W) in [-1,1]
    mask: Tensor  # (B,1,H,W), 1 = keep
    reference: Tensor  # (R,3,S,S), CLIP-normalised
    conditions: tuple[Condition, ...] = ()  # of each edit, R references in all; (): one each, R = B
    # of K regions at once, with B*K conditions: how much each position sees of each one's token, summing to 1
    shares: Tensor | None = None  # (B,K,h,w)
    control: Tensor | None = None  # (B,3,H,W) in [0,1]: of ldm.methods.control
    windows: bool = False  # whether the model sees them in parts, see ldm.methods.windows
    shown: Tensor | None = None  # (R,1,S,S), 1 where the object is in its reference; None: all of it

    @property
    def inpaint_image(self) -> Tensor:
        """(B,3,H,W): the image, grey (0) where it is to be painted."""
        return self.image * self.mask

    def in_window(self, window: Rectangle) -> Inputs:
        """The part that a window of the latent sees."""
        shares, control = (None if each is None else window.crop(each) for each in (self.shares, self.control))
        return replace(self, image=window.crop(self.image), mask=window.crop(self.mask), shares=shares, control=control)


@dataclass(frozen=True)
class PlannedEdit:
    """An edit that is ready to be sampled: its place in the photo, and what the model sees of it (B = 1)."""

    place: PlacedWindow
    inputs: Inputs


@dataclass(frozen=True)
class SamplingTask:
    """One picture to sample: what the model sees (B = 1), its seed, and how.

    start: the seed of x_T, if it is not `seed`."""

    inputs: Inputs
    seed: int
    sampling: Sampling
    start: int | None = None


def size_for(
    image: Image.Image,
    native: int,
    multiple: int,
    height: int | None = None,
    width: int | None = None,
    area: int | None = None,
) -> tuple[int, int]:
    """(H,W) at which to edit an upright image.

    A given height or width is kept. Otherwise, among multiples of `multiple` pixels, the size that comes nearest to the
    image's proportions and to the area, in pixels, of native x native unless it is given. Raises UserError for a height
    or width that the model cannot take."""
    for name, value in (("H", height), ("W", width)):
        if value is not None and (value < multiple or value % multiple):
            near = max(multiple, round(value / multiple) * multiple)
            raise UserError(f"{name} {value} does not fit the model, which takes multiples of {multiple}: use {near}")
        if value is not None and value > 8 * native:
            raise UserError(f"{name} {value} is too large: use at most {8 * native}")
    aspect, sides = image.width / image.height, range(multiple, 8 * native, multiple)
    sizes = [(h, w) for h in ([height] if height else sides) for w in ([width] if width else sides)]

    def misfit(size: tuple[int, int]) -> float:
        h, w = size
        return abs(math.log(w / h / aspect)) + 0.1 * abs(math.log(h * w / (area or native**2)))

    return min(sizes, key=misfit)


def make_inputs(
    picture: Image.Image,
    mask: Image.Image,
    references: Sequence[Image.Image],
    size: tuple[int, int],
    factor: int,
    reference_size: int,
    objects: Sequence[Image.Image] | None = None,
) -> Inputs:
    """Pictures of one edit, of any sizes -> what the model sees at size (H,W), without conditions.

    picture (RGB), mask (L, 255 = paint), references (RGB); factor: of the autoencoder; reference_size:
    side of a reference as CLIP sees it, pixels; objects (L, 255 = the object): of object_in_reference, of each.

    Raises UserError if the region is too small to appear in the latent."""
    width_height = size[::-1]
    if picture.size != width_height:
        picture = picture.resize(width_height, Image.Resampling.LANCZOS)
    if mask.size != width_height:
        mask = mask.resize(width_height, Image.Resampling.BILINEAR)
    keep = mask_to_tensor(mask)[None]
    if resize_tensor(keep, (size[0] // factor, size[1] // factor)).min() == 1:
        raise UserError(
            f"the mask's region is narrower than {factor} pixels at {size[1]} x {size[0]}, too small for the model to "
            "see: make the region larger, or H and W"
        )
    crops = torch.stack([reference_to_tensor(each, reference_size) for each in references])
    shown = None
    if objects is not None:
        side = (reference_size, reference_size)
        shown = torch.stack([pixels_to_tensor(each.resize(side, Image.Resampling.BOX)) for each in objects])
    return Inputs(image_to_tensor(picture)[None], keep, crops, shown=shown)


def stack(edits: Sequence[Inputs]) -> Inputs:
    """Inputs of several edits of one size -> one batch."""
    image, mask, reference = (torch.cat([getattr(e, field) for e in edits]) for field in ("image", "mask", "reference"))
    conditions = tuple(each for e in edits for each in (e.conditions or (Condition(),) * len(e.image)))
    fields = ("shares", "control", "shown")
    some = [[x for e in edits if (x := getattr(e, field)) is not None] for field in fields]
    assert len(some[2]) in (0, len(edits)), "some edits say where the object is in their references, others do not"
    shares, control, shown = (torch.cat(each) if each else None for each in some)
    return Inputs(image, mask, reference, conditions, shares, control, edits[0].windows, shown)
