"""A picture and a box in it -> a training sample: the recipe of Yang et al. 2022, section 3.

    Plan     the geometry, drawn before any pixel is read: the grown box, the blob's polygon, the square to cut out
    Recipe   the settings: plan(box, size, rng) -> Plan; render(picture, plan, rng) -> batch entry; sample does both

| batch key     | value                                                                       |
|---------------|-----------------------------------------------------------------------------|
| GT            | (3,S,S) in [-1,1]: a square of the picture around the box                   |
| inpaint_mask  | (1,S,S), 1 = keep, 0 = paint; soft at the edges                             |
| inpaint_image | (3,S,S): GT * inpaint_mask                                                  |
| ref_imgs      | (3,224,224), CLIP-normalised: the box and 10 px around it, augmented; in     |
|               | pair_share of the samples, those of another picture of the same object      |
| ref_mask      | with object_masks (1,224,224): 1 where the object is in it, 0 elsewhere     |
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.conventions import image_to_tensor, reference_to_tensor
from ldm.data.masks import Box, blob, grow, polygon_mask, rectangle_mask, reference_region, window
from ldm.data.object_masks import object_in
from ldm.data.reference import SIZE, Augmentation, load_augmentation, resize_reference
from ldm.images import PictureFile
from ldm.util import UserError


@dataclass(frozen=True)
class Plan:
    """The geometry of a sample, in pixels of the whole picture. points (n,2): of the blob; None for a rectangle."""

    box: Box
    grown: Box
    points: np.ndarray | None
    window: Box

    def mask(self, reduction: int = 1) -> np.ndarray:
        """(h,w) uint8, the mask of the window, 1 = keep, 0 = paint. reduction: divides all sizes (see PictureFile)."""
        x0, y0, x1, y1 = _reduced(self.window, reduction)
        if self.points is not None:
            return polygon_mask(self.points / reduction - (x0, y0), (x1 - x0, y1 - y0))
        left, top, right, bottom = _reduced(self.grown, reduction)
        return rectangle_mask((left - x0, top - y0, right - x0, bottom - y0), (x1 - x0, y1 - y0))


@dataclass(frozen=True)
class View:
    """An object in a picture, to take the reference from."""

    picture: PictureFile
    box: Box


AnotherView = Callable[[int, np.random.Generator], View | None]  # (j, rng) -> of the object in a picture's j-th box


@dataclass(frozen=True)
class Sample:
    """A batch entry, and the picture and geometry that it is made from. view: where its reference comes from, if it is
    another picture."""

    picture: PictureFile
    plan: Plan
    entry: dict[str, Tensor]
    view: View | None = None


@dataclass(frozen=True)
class Recipe:
    """How samples are made. arbitrary_mask_percent: share (0 to 1) of blobs among the masks; the others are rectangles.
    image_size: S, in pixels.

    reference_augmentation: true for the published recipe, false for no augmentation, or the path of a file with another
    albumentations pipeline. mask_augmentation: if false, the mask is the box itself.
    exact: the published arithmetic, which resizes in floating point. Otherwise 8-bit pixels are resized, which differs
    by less than a grey level, and a JPEG at least twice as large as needed is decoded at a half, a quarter or an
    eighth of its size.
    pair_share: share (0 to 1) of samples with a reference from another picture of the same object, among those whose
    object has one. It changes their reference and nothing else, and the other samples not at all.
    object_masks: also give the object's place in the reference (see ldm/data/object_masks.py)."""

    arbitrary_mask_percent: float = 0.5
    image_size: int = 512
    reference_augmentation: bool | str = True
    mask_augmentation: bool = True
    exact: bool = False
    pair_share: float = 0.0
    object_masks: bool = False

    def __post_init__(self) -> None:
        for name in ("arbitrary_mask_percent", "pair_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)} is out of range: use a share from 0 to 1")
        if self.image_size < 1:
            raise UserError(f"image_size = {self.image_size} is out of range: use at least 1 pixel")
        _ = self.augment  # loaded here: worker processes share it, and an unusable file stops training at once

    @cached_property
    def augment(self) -> Augmentation | None:
        """The reference's augmentation, or None."""
        return load_augmentation(self.reference_augmentation)

    def sample(
        self, picture: PictureFile, boxes: np.ndarray, rng: np.random.Generator, another_view: AnotherView | None = None
    ) -> Sample:
        """boxes (n,4) int: one of them is drawn. another_view: needed if pair_share is above 0. Raises UserError: no
        box, one outside the picture, or a damaged picture."""
        if not len(boxes):
            raise UserError(f"image {picture.path} has no box: add one, or remove the picture from the index")
        j = int(rng.integers(len(boxes)))
        try:
            plan = self.plan(tuple(boxes[j].tolist()), picture.size, rng)
        except UserError as error:
            raise UserError(f"image {picture.path}: {error}") from error
        view = self.draw_view(another_view, j, rng) if another_view and self.pair_share else None
        return Sample(picture, plan, self.render(picture, plan, rng, view), view)

    def draw_view(self, another_view: AnotherView, j: int, rng: np.random.Generator) -> View | None:
        """The view that the j-th box's reference comes from; None: its own. Draws from a child of rng, whose own
        numbers stay those of a sample without pairs."""
        (child,) = rng.spawn(1)
        return another_view(j, child) if child.random() < self.pair_share else None

    def plan(self, box: Box, size: tuple[int, int], rng: np.random.Generator) -> Plan:
        """size: of the picture, (width, height). Raises UserError: the box has no area inside the picture."""
        box = _inside(box, size)
        if not self.mask_augmentation:
            return Plan(box, box, None, window(box, size, rng))
        grown = grow(box, size, rng)
        arbitrary = rng.random() < self.arbitrary_mask_percent
        return Plan(box, grown, blob(box, grown, rng) if arbitrary else None, window(grown, size, rng))

    def render(
        self, picture: PictureFile, plan: Plan, rng: np.random.Generator, view: View | None = None
    ) -> dict[str, Tensor]:
        """The batch entry. view: to take the reference from. Raises UserError: a damaged picture, a view outside its
        picture."""
        region = reference_region(plan.box, picture.size)
        reduction = 1 if self.exact else self.reduction(plan.window, region)
        pixels = picture.pixels(reduction)
        reference = resize_reference(_cut(pixels, _reduced(region, reduction))) if view is None else self.seen(view)
        augment = self.augment if view is None else None  # another view differs enough, and in ways that are real
        shown = {}
        if self.object_masks:
            mask = _object_mask(view or View(picture, plan.box))
            if augment:
                mask = augment(mask, copy.deepcopy(rng))  # moved as the reference will be
            shown["ref_mask"] = torch.from_numpy((mask[..., 0] >= 128).astype(np.float32))[None]
        if augment:
            reference = augment(reference, rng)
        square = _cut(pixels, _reduced(plan.window, reduction))
        image = image_to_tensor(self.resize(square.astype(np.float32) if self.exact else square))
        mask = torch.from_numpy(self.resize(plan.mask(reduction).astype(np.float32)))[None]
        return {
            "GT": image,
            "inpaint_image": image * mask,
            "inpaint_mask": mask,
            "ref_imgs": reference_to_tensor(Image.fromarray(reference)),
            **shown,
        }

    def seen(self, view: View) -> np.ndarray:
        """(224,224,3) uint8: the view's object and 10 px around it. Raises UserError: damaged, outside its picture."""
        try:
            region = reference_region(_inside(view.box, view.picture.size), view.picture.size)
        except UserError as error:
            raise UserError(f"reference {view.picture.path}: {error}") from error
        reduction = 1 if self.exact else _reduction(_shorter_side(region) // SIZE)
        return resize_reference(_cut(view.picture.pixels(reduction), _reduced(region, reduction)))

    def resize(self, square: np.ndarray) -> np.ndarray:
        """(h,w) or (h,w,3) -> (S,S) or (S,S,3), bilinear without antialias."""
        return cv2.resize(square, (self.image_size, self.image_size), interpolation=cv2.INTER_LINEAR)

    def reduction(self, window: Box, region: Box) -> int:
        """The largest of 8, 4, 2 and 1 by which a JPEG can be reduced while decoding so that the window keeps at least
        image_size pixels and the reference 224."""
        return _reduction(min(_shorter_side(window) // self.image_size, _shorter_side(region) // SIZE))


def _reduction(limit: int) -> int:
    """The largest of 8, 4, 2 and 1 that is not above the limit."""
    return next(n for n in (8, 4, 2, 1) if n <= max(1, limit))


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box inside a picture of size (width, height). Raises UserError: it has no area there."""
    (x0, y0, x1, y1), (width, height) = box, size
    inside = (max(0, x0), max(0, y0), min(width, x1), min(height, y1))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise UserError(f"the box {x0} {y0} {x1} {y1} has no area in a picture of {width} x {height}: correct it")
    return inside


def _shorter_side(box: Box) -> int:
    return min(box[2] - box[0], box[3] - box[1])


def _reduced(box: Box, reduction: int) -> Box:
    return tuple(round(edge / reduction) for edge in box)


def _cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return pixels[y0:y1, x0:x1]


def _object_mask(view: View) -> np.ndarray:
    """(224,224,3) uint8, 255 where the view's object is in the reference that shows it. Raises UserError: no mask."""
    region = reference_region(_inside(view.box, view.picture.size), view.picture.size)
    return np.repeat(resize_reference(object_in(view.picture, view.box, region))[..., None], 3, axis=2)
