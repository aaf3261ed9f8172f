"""How to sample, by name: fewer evaluations of the UNet for the same edit. docs/fewer-steps.md has the scores."""

from __future__ import annotations

from typing import NamedTuple

from ldm.util import UserError


class Preset(NamedTuple):
    """sampler, steps: of sampling.sample. interval: first and last timestep with guidance, of denoiser.guided_eps;
    None: all have it. refresh: of denoiser.RegionEps; 1: every evaluation is of the whole picture."""

    sampler: str = "plms"
    steps: int = 50
    interval: tuple[int, int] | None = None
    refresh: int = 1


PRESETS = {
    "fast": Preset("dpm++", 12, (0, 850), refresh=2),
    "draft": Preset("dpm++", 6),
}


def resolve_preset(preset: str | None = None, sampler: str | None = None, steps: int | None = None) -> Preset:
    """What is asked for by name, or else by sampler and steps: PLMS and 50 where not given.

    Raises UserError: no such preset, or one and a sampler or steps beside it."""
    if preset is None:
        given = {"sampler": sampler, "steps": steps}
        return Preset(**{name: value for name, value in given.items() if value is not None})
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r} is unknown; use one of {', '.join(PRESETS)}")
    if sampler is not None or steps is not None:
        beside = f"sampler {sampler}" if sampler is not None else f"{steps} steps"
        raise UserError(f"preset {preset} and {beside} contradict each other; give one of them")
    return PRESETS[preset]
