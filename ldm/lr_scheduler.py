"""LambdaLinearScheduler: linear warm-up, then linear decay, in cycles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ldm.util import UserError


class LambdaLinearScheduler:
    """`scheduler(step)` -> the factor by which the base learning rate is multiplied.

    In each cycle of cycle_lengths[i] steps it rises linearly from f_start[i] to f_max[i] in warm_up_steps[i] steps and
    then falls linearly towards f_min[i] at the cycle's end. After the last cycle it keeps its last value.
    verbosity_interval: of published configs, without effect."""

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ):
        cycles = [list(values) for values in (warm_up_steps, cycle_lengths, f_start, f_max, f_min)]
        if not cycles[0] or len({len(values) for values in cycles}) != 1:
            raise UserError(
                "config: scheduler_config's lists are empty or differ in length: give each one value per cycle"
            )
        self.cycles = list(zip(*cycles, strict=True))
        self.ends = list(accumulate(cycle_lengths))

    def __call__(self, step: float) -> float:
        cycle = next((i for i, end in enumerate(self.ends) if step <= end), len(self.ends) - 1)
        n = min(step, self.ends[cycle]) - (self.ends[cycle - 1] if cycle else 0)
        warm_up, length, f_start, f_max, f_min = self.cycles[cycle]
        if n < warm_up:
            return f_start + (f_max - f_start) / warm_up * n
        return f_min + (f_max - f_min) * (length - n) / length

    schedule = __call__  # its name in published code
