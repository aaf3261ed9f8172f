"""Which part of a picture FastUNet computes: all of it, or a rectangle around the region of the edit.

Around the region that an edit paints, activations change little from one step to the next. So some evaluations compute
only a rectangle around the region; outside it, every layer sees its input of the last evaluation of the whole picture.
Sparse inference (Li et al. 2022, SIGE) reuses activations of an earlier edit; here they come from an earlier step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.fast.winograd import WinogradConv2d
from ldm.models.diffusion.sampling import eps_from_x0, x0_from_eps
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.modules.diffusionmodules.util import tile_batch

MARGIN = 1  # pixels of the latent that a rectangle has around its region
MAX_SHARE = 0.8  # of the picture; a larger rectangle saves too little


class Rectangle(NamedTuple):
    """Rows top to bottom - 1 and columns left to right - 1 of a latent of this width."""

    top: int
    bottom: int
    left: int
    right: int
    width: int

    @classmethod
    def around(cls, paint: Tensor, multiple: int) -> Rectangle | None:
        """The rectangle around all painted positions, with MARGIN around them and its edges on multiples of `multiple`,
        or None if it covers more than MAX_SHARE of the picture.

        paint (B,1,h,w): true where an edit paints; `multiple` divides h and w."""
        height, width = paint.shape[-2:]
        edges = []
        for dim, size in ((-1, height), (-2, width)):
            painted = paint.flatten(0, 1).any(dim=0).any(dim=dim).nonzero().flatten()
            first, last = (int(painted[0]), int(painted[-1])) if len(painted) else (0, 0)
            edges += [max(first - MARGIN, 0) // multiple * multiple]
            edges += [min(-(-(last + 1 + MARGIN) // multiple) * multiple, size)]
        top, bottom, left, right = edges
        if (bottom - top) * (right - left) > MAX_SHARE * height * width:
            return None
        return cls(top, bottom, left, right, width)

    def edges_in(self, x: Tensor) -> tuple[int, int, int, int]:
        """top, bottom, left, right in x (B,C,h,w), the same picture at any resolution."""
        top, bottom, left, right = (edge * x.shape[-1] // self.width for edge in self[:4])
        return top, bottom, left, right

    def crop(self, x: Tensor) -> Tensor:
        """The rectangle of x (B,C,h,w), the same picture at any resolution; a view."""
        top, bottom, left, right = self.edges_in(x)
        return x[:, :, top:bottom, left:right]


class Area:
    """The part of the picture that an evaluation computes: the whole picture, unless a subclass says otherwise."""

    def with_surroundings(self, layer: nn.Module, x: Tensor) -> Tensor:
        """x, the layer's input in the area -> its input in the whole picture."""
        return x

    def crop(self, x: Tensor) -> Tensor:
        """x of the whole picture -> x in the area."""
        return x

    def convolve(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A 3x3 convolution's input in the whole picture -> its output in the area."""
        return layer(x)


WHOLE_PICTURE = Area()


class RecordedPicture(Area):
    """The whole picture. Keeps each layer's input in `inputs`, for a PartialPicture."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}

    def with_surroundings(self, layer: nn.Module, x: Tensor) -> Tensor:
        self.inputs[layer] = x
        return x


class PartialPicture(Area):
    """A rectangle, whose edges are even at every resolution except the lowest. Around it the layers see the recorded
    inputs, which it overwrites inside the rectangle."""

    def __init__(self, rectangle: Rectangle, recorded: RecordedPicture):
        self.rectangle, self.inputs = rectangle, recorded.inputs

    def with_surroundings(self, layer: nn.Module, x: Tensor) -> Tensor:
        whole = self.inputs[layer]
        self.rectangle.crop(whole).copy_(x)
        return whole

    def crop(self, x: Tensor) -> Tensor:
        return self.rectangle.crop(x)

    def convolve(self, layer: nn.Module, x: Tensor) -> Tensor:
        top, bottom, left, right = self.rectangle.edges_in(x)
        height, width = x.shape[-2:]
        # the rectangle and one pixel on each side, zeros outside the picture; negative padding crops
        x = F.pad(x, (1 - left, right + 1 - width, 1 - top, bottom + 1 - height))
        conv = layer.op if isinstance(layer, Downsample) else layer
        if isinstance(conv, WinogradConv2d):
            return conv(x, padding=0)
        if isinstance(conv, nn.Conv2d):
            return F.conv2d(x, conv.weight, conv.bias, conv.stride)
        return layer(x)[:, :, 2:-2, 2:-2]  # PhaseUpsample: the pixel on each side has become two


class RegionEps:
    """eps(x, t) of one edit. Every `refresh`-th evaluation, beginning with the first, computes the whole picture; the
    others compute a rectangle around the region, and outside it keep the x_0 that was predicted last.

    eps_in_area: (x (b,4,h,w), t, area) -> eps (B,4,h',w') in the area; B is b, or 2 b with guidance."""

    def __init__(
        self,
        eps_in_area: Callable[[Tensor, int, Area], Tensor],
        rectangle: Rectangle,
        refresh: int,
        schedule: NoiseSchedule,
    ):
        self.eps_in_area, self.rectangle, self.refresh, self.schedule = eps_in_area, rectangle, refresh, schedule
        self.evaluations = 0
        # of the last evaluation of the whole picture: its layers' inputs, and the predicted x_0 (B,4,h,w)
        self.recorded = RecordedPicture()
        self.pred_x0: Tensor | None = None

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x (b,4,h,w), t -> eps (B,4,h,w)."""
        compute_whole = self.evaluations % self.refresh == 0
        self.evaluations += 1
        return self._evaluate_whole(x, t) if compute_whole else self._evaluate_rectangle(x, t)

    def _evaluate_whole(self, x: Tensor, t: int) -> Tensor:
        self.recorded = RecordedPicture()
        eps = self.eps_in_area(x, t, self.recorded)
        self.pred_x0 = x0_from_eps(tile_batch(x, eps.shape[0]), eps, float(self.schedule.alphas_cumprod[t]))
        return eps

    def _evaluate_rectangle(self, x: Tensor, t: int) -> Tensor:
        inside = self.eps_in_area(x, t, PartialPicture(self.rectangle, self.recorded))
        assert self.pred_x0 is not None  # the first evaluation is of the whole picture
        eps = eps_from_x0(tile_batch(x, inside.shape[0]), self.pred_x0, float(self.schedule.alphas_cumprod[t]))
        self.rectangle.crop(eps).copy_(inside)
        return eps
