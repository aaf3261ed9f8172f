"""Up to which guidance scale a sampler is stable (measured in the small world: docs/fewer-steps.md).

Multistep samplers extrapolate from earlier predictions. A guidance scale s multiplies the differences of these by s, so
with too few steps for a scale the latents run away, which shows as colours that are far too strong. Guidance itself is
not at fault: another sampler, or more steps of the same, follow the same scale."""

from __future__ import annotations

import math

STABLE_SCALES: dict[str, dict[int, float]] = {  # sampler -> steps -> the largest stable scale that was measured
    "plms": {10: 1.0, 15: 3.0, 35: 5.0, 100: 10.0},
    "ddim": {10: 10.0, 25: 15.0},
    "dpm++": {6: 5.0, 12: 15.0},
    "unipc": {8: 5.0, 12: 10.0},
}
LARGEST_SCALE = 15.0  # the largest that was measured; a sampler that is stable there counts as unlimited


def stable_scale(sampler: str, steps: int) -> float:
    """The largest guidance scale that this sampler follows with this many steps, as far as is known; inf: no limit was
    found. Fewer steps than were measured count as the fewest measured."""
    measured = STABLE_SCALES[sampler]
    limit = measured[max((n for n in measured if n <= steps), default=min(measured))]
    return math.inf if limit >= LARGEST_SCALE else limit


def stability_note(sampler: str, steps: int, scale: float) -> str | None:
    """A sentence for the user if a scale lies beyond the stable ones."""
    limit = stable_scale(sampler, steps)
    if scale <= limit:
        return None
    count = f"{steps} step{'s' * (steps != 1)}"
    return (
        f"scale {scale:g} was too large for {count} of {sampler} in the small world: if colours are far too strong, use"
        f" a scale of at most {limit:g}, more steps, or another sampler"
    )
