"""Edits that keep the photo's layout: an inversion with the region's own token, then sampling with the reference's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ldm.methods.inversion import ddim_inversion, ddpm_inversion, null_vectors
from ldm.methods.plug_and_play import plug_and_play_eps
from ldm.models.diffusion.sampling import Callback, Eps, Step, ddim_timesteps, sample_ddim
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.modules.diffusionmodules.openaimodel import UNetModel


def kept_timesteps(steps: int, keep: float, num_timesteps: int) -> list[int]:
    """The timesteps that an edit still takes if it leaves out the share `keep`, the noisiest; one at least."""
    timesteps = ddim_timesteps(steps, num_timesteps).tolist()
    return timesteps[: max(1, len(timesteps) - round(keep * len(timesteps)))]


def counted(callback: Callback | None, total: int) -> Callback:
    """A callback for several stages one after the other: their steps are numbered from 0 to total - 1."""
    numbers = itertools.count()

    def count(step: Step) -> None:
        if callback:
            callback(replace(step, index=next(numbers), total=total))

    return count


def sample_keeping_layout(
    method: str,
    eps_of: Callable[..., Eps],
    tokens: tuple[Tensor, Tensor, Tensor],
    source: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    keep: float,
    scale: float,
    noise: Callable[[], Tensor],
    unet: UNetModel,
    callback: Callback | None = None,
) -> Tensor:
    """The photo, inverted with its own token and sampled with the reference's -> x_0 (B,4,h,w).

    method: "ddpm"; "ddim", with the vectors of null_vectors; "pnp", Plug-and-Play
    eps_of: (token, v, scale, plain) -> eps(x, t), guided; plain: by `unet`, through which gradients reach v
    tokens: c of the reference, c of the region's own crop, v, each (B,M,D)
    keep: share of the steps, the noisiest, that are left out; at 1 the source is returned. With "pnp" all steps are
        taken, and this share of them with the photo's features
    callback: called with a Step after every step of the inversion, of the search for vectors and of sampling"""
    c_ref, c_src, v = tokens
    if keep == 1:
        return source
    timesteps = kept_timesteps(steps, 0.0 if method == "pnp" else keep, schedule.num_timesteps)
    guided = method == "ddim" and scale != 1.0
    callback = counted(callback, (3 if guided else 2) * len(timesteps))
    if method == "ddpm":
        x, z = ddpm_inversion(eps_of(c_src, v, scale), source, schedule, timesteps, noise, callback)
        eps = eps_of(c_ref, v, scale)
        return sample_ddim(eps, x, schedule, timesteps, eta=1.0, noise=iter(z).__next__, callback=callback)
    eps_src = eps_of(c_src, v, 1.0, plain=method == "pnp")
    path = ddim_inversion(eps_src, source, schedule, timesteps, callback)
    if method == "pnp":
        eps = plug_and_play_eps(unet, eps_src, eps_of(c_ref, v, scale, plain=True), path, timesteps, keep)
        return sample_ddim(eps, path[-1], schedule, timesteps, callback=callback)
    vectors = {}
    if guided:
        vectors = null_vectors(lambda v: eps_of(c_src, v, scale, plain=True), v, path, schedule, timesteps, callback)

    def edited(x: Tensor, t: int) -> Tensor:
        return eps_of(c_ref, vectors.get(t, v), scale)(x, t)

    return sample_ddim(edited, path[-1], schedule, timesteps, callback=callback)
