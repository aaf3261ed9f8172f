"""What a detail path (ldm/models/detail) adds to an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ldm.editing.inputs import Inputs
from ldm.editing.options import Sampling
from ldm.modules.detail import BlockDetail
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.editing.painter import Painter


def edit_details(
    painter: Painter, inputs: Inputs, keep: Tensor, reference: Tensor, tokens: Tensor, sampling: Sampling
) -> list[BlockDetail] | None:
    """What the painter's detail path adds in every step, or None if there is no path or nothing of it is wanted.

    keep (n,1,h,w): the mask at the latent's size, 1 = keep; reference (R,3,S,S), tokens (R,M,D): of the inputs, on
    the device. Raises UserError: an edit that it cannot be added to."""
    path, model = painter.detail, painter.model
    if path is None:
        if sampling.detail_scale is not None:
            raise UserError("detail_scale has no effect without a detail path: name one with --detail")
        return None
    if sampling.detail_scale == 0:
        return None
    if inputs.shares is not None or sampling.keep_layout:
        raise UserError("a detail path does not go with together or keep_layout: leave them out, or use detail_scale 0")
    encoded = path.encode(painter.networks, reference).to(model.device)  # with offload, the CPU
    memories = path.memories(painter.networks, encoded, tokens)
    shown = None if inputs.shown is None or inputs.shown.min() == 1 else inputs.shown.to(model.device)
    counts = [len(each.learned) for each in inputs.conditions] or None
    scale = 1.0 if sampling.detail_scale is None else sampling.detail_scale
    return path(model.model.diffusion_model, memories, keep.to(model.device), shown, counts, scale)
