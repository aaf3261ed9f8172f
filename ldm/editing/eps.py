"""From the conditions of a batch of edits to the eps(x, t) that a sampler takes: guidance, and what an edit asks for
beside it: windows, control, what stays of the photo."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.editing.inputs import Inputs
from ldm.editing.options import Sampling
from ldm.fast.networks import Networks
from ldm.models.diffusion.denoiser import Denoiser, blended_eps, guided_eps, make_denoiser
from ldm.models.diffusion.sampling import Eps
from ldm.modules.detail import BlockDetail
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.methods.control import Control


class EpsOf:
    """(c (B,M,D), v (B,M,D), scale) -> eps(x, t) of a batch of edits, guided.

    inpaint (B,5,h,w): of inpaint_channels; source (B,4,h,w): x_0 of the photo, for whatever keeps it: blend_latents,
    windows, and strength (B,1,h,w), where that is not the same everywhere; details: of edit_details. Raises UserError:
    control_scale without a control picture."""

    def __init__(
        self,
        networks: Networks,
        control: Control | None,
        sampling: Sampling,
        inputs: Inputs,
        inpaint: Tensor,
        source: Tensor | None = None,
        strength: float | Tensor = 1.0,
        details: Sequence[BlockDetail] | None = None,
    ):
        self.networks, self.control, self.sampling, self.inpaint = networks, control, sampling, inpaint
        self.source, self.strength = source, strength
        if sampling.control_scale is not None and (inputs.control is None or control is None):
            raise UserError(f"control_scale {sampling.control_scale} does nothing by itself: give control, too")
        self.windowed: Callable[..., Denoiser] | None = None
        if not inputs.windows:
            self.parts = [self._denoiser(inputs, details, sampling.refresh)]
            return
        from ldm.methods.windows import weights_of, windowed, windows_over

        windows = windows_over(inpaint[:, -1:] != 1, networks.model.image_size)
        weights = weights_of(windows, (inpaint.shape[-2], inpaint.shape[-1]))
        self.parts = [
            self._denoiser(
                inputs.in_window(each), details and [every.in_part(each.crop) for every in details], refresh=1
            )
            for each in windows
        ]
        self.windowed = functools.partial(windowed, windows=windows, weights=weights)
        self.unseen = (weights.sum(dim=0) == 0).to(inpaint)  # there the photo stays

    def __call__(self, context: Tensor, uncond: Tensor, scale: float | Tensor, plain: bool = False) -> Eps:
        """plain: by the model's own UNet, which lets gradients through and has the published parts."""
        denoisers = [part(plain) for part in self.parts]
        denoiser = self.windowed(denoisers) if self.windowed else denoisers[0]
        eps = guided_eps(denoiser, self.inpaint, context, uncond, scale, self.sampling.interval)
        if self.source is None:
            return eps
        schedule = self.networks.model.schedule
        if self.windowed:
            eps = blended_eps(eps, self.source, self.unseen, schedule)
        if self.sampling.blend_latents:
            eps = blended_eps(eps, self.source, self.inpaint[:, -1:], schedule)
        if isinstance(self.strength, Tensor):
            from ldm.methods.token_field import held_eps

            eps = held_eps(eps, self.source, self.strength, schedule)
        return eps

    def _denoiser(
        self, inputs: Inputs, details: Sequence[BlockDetail] | None, refresh: int
    ) -> Callable[[bool], Denoiser]:
        """Of the edits or of one of their windows: plain or not -> a denoiser that sees each region's token in its
        place, and follows the control pictures."""
        networks, device, steer = self.networks, self.networks.device, None
        shares = None if inputs.shares is None else inputs.shares.to(device)
        if inputs.control is not None and self.control is not None:
            scale = 1.0 if self.sampling.control_scale is None else self.sampling.control_scale
            steer = self.control.steering(inputs.control.to(device), scale)

        def denoiser(plain: bool) -> Denoiser:
            if plain and device != networks.model.device:
                raise UserError("--offload does not go with keep_layout ddim or pnp: leave it out, or use ddpm")
            found: Denoiser = functools.partial(networks.denoiser, refresh=refresh, shares=shares, details=details)
            if plain:
                found = make_denoiser(networks.model.apply_model)
            return steer(found) if steer else found

        return denoiser


def field_of(shares: Tensor, own: Sequence[float | None], otherwise: float) -> float | Tensor:
    """What holds at each position (B,1,h,w): the mean of the regions' own values, `otherwise` for those that have none,
    by their shares (B,K,h,w); only `otherwise` if none has any."""
    if all(value is None for value in own):
        return otherwise
    values = torch.tensor([otherwise if value is None else value for value in own])
    return (shares * values.view(len(shares), -1, 1, 1).to(shares)).sum(dim=1, keepdim=True)
