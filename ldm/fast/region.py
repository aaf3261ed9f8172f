"""Which part of its picture a FastUNet computes: all of it, or a rectangle, with the rest as it last was.

An edit paints a region; what lies around it changes little from one step to the next. So an evaluation may be of a
rectangle around the region alone: there every layer sees, around the rectangle, what it saw when all was computed
last. Sparse inference (Li et al. 2022, SIGE) keeps activations of an earlier edit so; here they are of an earlier step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.fast.winograd import WinogradConv2d
from ldm.models.diffusion.sampling import Eps, eps_from_x0, x0_from_eps
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.modules.diffusionmodules.util import tile_batch

MARGIN = 1  # pixels of the latent around a region
WORTH = 0.8  # a rectangle that is more of the picture saves too little


class Rectangle(NamedTuple):
    """Of a latent of a certain width: rows and columns, first and one after the last."""

    top: int
    bottom: int
    left: int
    right: int
    width: int

    @classmethod
    def around(cls, paint: Tensor, multiple: int) -> Rectangle | None:
        """paint (B,1,h,w), of a latent: true where any of the edits paints; the rectangle's edges are multiples of
        `multiple`, which divides h and w. None: it would be more than WORTH of the picture."""
        height, width = paint.shape[-2:]
        edges = []
        for dim, size in ((-1, height), (-2, width)):
            at = paint.flatten(0, 1).any(dim=0).any(dim=dim).nonzero().flatten()
            first, last = (int(at[0]), int(at[-1])) if len(at) else (0, 0)
            edges += [max(first - MARGIN, 0) // multiple * multiple]
            edges += [min(-(-(last + 1 + MARGIN) // multiple) * multiple, size)]
        top, bottom, left, right = edges
        if (bottom - top) * (right - left) > WORTH * height * width:
            return None
        return cls(top, bottom, left, right, width)

    def edges(self, x: Tensor) -> tuple[int, int, int, int]:
        """Its edges in x (B,C,h,w), the same picture at another resolution."""
        return tuple(edge * x.shape[-1] // self.width for edge in self[:4])

    def cut(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> the rectangle of it, a view."""
        top, bottom, left, right = self.edges(x)
        return x[:, :, top:bottom, left:right]


class WholePicture:
    """All of the picture is computed."""

    def around(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What a layer is given, of the part that is computed -> of the whole picture."""
        return x

    def inside(self, x: Tensor) -> Tensor:
        """Of the whole picture -> of the part that is computed."""
        return x

    def conv(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A 3x3 convolution's input, of the whole picture -> its output, of the part that is computed."""
        return layer(x)


WHOLE_PICTURE = WholePicture()


class RecordedPicture(WholePicture):
    """All is computed, and what the layers were given is kept."""

    def __init__(self) -> None:
        self.given: dict[nn.Module, Tensor] = {}

    def around(self, layer: nn.Module, x: Tensor) -> Tensor:
        self.given[layer] = x
        return x


class PartialPicture(WholePicture):
    """A rectangle is computed, whose edges are even at all resolutions but the lowest; around it the layers see what
    `remembered` has, into which the rectangle goes."""

    def __init__(self, rectangle: Rectangle, remembered: RecordedPicture):
        self.rectangle, self.given = rectangle, remembered.given

    def around(self, layer: nn.Module, x: Tensor) -> Tensor:
        whole = self.given[layer]
        self.rectangle.cut(whole).copy_(x)
        return whole

    def inside(self, x: Tensor) -> Tensor:
        return self.rectangle.cut(x)

    def conv(self, layer: nn.Module, x: Tensor) -> Tensor:
        top, bottom, left, right = self.rectangle.edges(x)
        height, width = x.shape[-2:]
        # with one more on each side, zeros outside the picture; negative padding cuts
        x = F.pad(x, (1 - left, right + 1 - width, 1 - top, bottom + 1 - height))
        conv = layer.op if isinstance(layer, Downsample) else layer
        if isinstance(conv, WinogradConv2d):
            return conv(x, padding=0)
        if isinstance(conv, nn.Conv2d):
            return F.conv2d(x, conv.weight, conv.bias, conv.stride)
        return layer(x)[:, :, 2:-2, 2:-2]  # PhaseUpsample: twice as large


def RegionEps(
    eps_of: Callable[[Tensor, int, WholePicture], Tensor], rectangle: Rectangle, refresh: int, schedule: NoiseSchedule
) -> Eps:
    """One of `refresh` evaluations, the first to begin with, is of the whole picture; the others are of a rectangle
    around the region. Outside it pred_x0 stays as it was when last evaluated.

    eps_of: (x (b,4,h,w), t, area) -> eps of the area that is computed, of b edits or of all their branches."""
    count, remembered, pred_x0 = itertools.count(), None, None

    def eps(x: Tensor, t: int) -> Tensor:
        nonlocal remembered, pred_x0
        abar = float(schedule.alphas_cumprod[t])
        if next(count) % refresh == 0:
            remembered = RecordedPicture()
            whole = eps_of(x, t, remembered)
            pred_x0 = x0_from_eps(tile_batch(x, whole.shape[0]), whole, abar)
        else:
            inside = eps_of(x, t, PartialPicture(rectangle, remembered))
            whole = eps_from_x0(tile_batch(x, inside.shape[0]), pred_x0, abar)
            rectangle.cut(whole).copy_(inside)
        return whole

    return eps
