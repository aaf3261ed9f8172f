"""Named ways to sample: fewer evaluations of the UNet for nearly the same edit (scores: docs/fewer-steps.md)."""

from __future__ import annotations

from typing import NamedTuple

from ldm.util import UserError


class Preset(NamedTuple):
    """sampler, steps: of sampling.sample
    interval: first and last timestep with guidance, of denoiser.guided_eps; None: all timesteps
    refresh: every refresh-th evaluation computes the whole picture, of fast.region.RegionEps; 1: all of them do"""

    sampler: str = "plms"
    steps: int = 50
    interval: tuple[int, int] | None = None
    refresh: int = 1


DEFAULT = Preset()
PRESETS = {
    "fast": Preset("dpm++", 12, (0, 850), refresh=2),
    "draft": Preset("dpm++", 6),
}


def resolve_preset(preset: str | None = None, sampler: str | None = None, steps: int | None = None) -> Preset:
    """The preset of this name, or one with this sampler and these steps, by default PLMS and 50.

    Raises UserError: no such preset, or a preset together with a sampler or steps."""
    if preset is None:
        return Preset(DEFAULT.sampler if sampler is None else sampler, DEFAULT.steps if steps is None else steps)
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r} is unknown: use one of {', '.join(PRESETS)}")
    if sampler is not None or steps is not None:
        beside = f"sampler {sampler}" if sampler is not None else f"{steps} steps"
        raise UserError(f"preset {preset} and {beside} contradict each other: give one of them")
    return PRESETS[preset]
