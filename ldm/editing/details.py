"""What a detail path (ldm/models/detail) adds to an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ldm.editing.inputs import Inputs
from ldm.editing.options import Placement, Sampling
from ldm.modules.detail import BlockDetail
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.editing.painter import Painter


def adds_detail(path: object | None, sampling: Sampling, together: bool, mixed: bool) -> bool:
    """Whether edits have something of a detail path. path: it or its file, None if there is none; together: several
    regions are painted at once; mixed: references are mixed. Raises UserError: edits that it cannot be added to."""
    if path is None:
        if sampling.detail_scale is not None:
            raise UserError("detail_scale has no effect without a detail path: name one with --detail")
        return False
    if sampling.detail_scale == 0:
        return False
    for name, used in (("together", together), ("keep_layout", sampling.keep_layout), ("mix", mixed)):
        if used:
            raise UserError(f"a detail path (Likeness) does not go with {name}: leave it out, or use detail_scale 0")
    return True


def plans_detail(path: object | None, sampling: Sampling, placement: Placement) -> bool:
    """adds_detail, for edits that are placed so."""
    return adds_detail(path, sampling, bool(placement.together), placement.mix is not None)


def edit_details(
    painter: Painter, inputs: Inputs, keep: Tensor, reference: Tensor, tokens: Tensor, sampling: Sampling
) -> list[BlockDetail] | None:
    """What the painter's detail path adds in every step, or None if there is no path or nothing of it is wanted.

    keep (n,1,h,w): the mask at the latent's size, 1 = keep; reference (R,3,S,S), tokens (R,M,D): of the inputs, on
    the device. Raises UserError: an edit that it cannot be added to."""
    path, model = painter.detail, painter.model
    mixed = any(each.mix is not None for each in inputs.conditions)
    if not adds_detail(path, sampling, inputs.shares is not None, mixed):
        return None
    assert path is not None
    encoded = path.encode(painter.networks, reference).to(model.device)  # with offload, the CPU
    memories = path.memories(painter.networks, encoded, tokens)
    shown = None if inputs.shown is None or inputs.shown.min() == 1 else inputs.shown.to(model.device)
    counts = [len(each.learned) for each in inputs.conditions] or None
    scale = 1.0 if sampling.detail_scale is None else sampling.detail_scale
    return path(model.model.diffusion_model, memories, keep.to(model.device), shown, counts, scale)
