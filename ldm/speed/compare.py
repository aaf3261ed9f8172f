"""Measures contestants in turn, in one process: seconds, ratios to the first one, differences of their results."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.editing.inputs import stack
from ldm.speed.contestants import PARTS, RECTANGLE, STEPS, Contestant, Ours, Pictures

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """A row of a benchmark's table; None: not measured.

    ratio: how many times as fast as the first contestant. max_difference, rms_difference: from the result of our plain
    float32 networks, the largest, and the root mean square relative to the result's. flops: of one run.
    share_of_peak: of the rate of a large matrix product."""

    part: str
    who: str | None = None
    seconds: float = 0.0
    ratio: float | None = None
    max_difference: float | None = None
    rms_difference: float | None = None
    edits_per_second: float | None = None
    flops: float | None = None
    share_of_peak: float | None = None

    def as_json(self) -> dict[str, str | float]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        words = [f"{self.part:28s}", f"{self.who or '':28s}", f"{1e3 * self.seconds:12.2f} ms"]
        if self.ratio is not None:
            words.append(f"{self.ratio:6.2f} x")
        if self.max_difference is not None:
            words.append(f"   differs by {self.max_difference:.1e} at most, {self.rms_difference:.1e} rms")
        if self.edits_per_second is not None:
            words.append(f"{self.edits_per_second:8.2f} edits/s")
        if self.flops is not None:
            words.append(f"{self.flops / 1e9:9.1f} GF {self.share_of_peak:6.1%} of a matrix product's rate")
        return " ".join(words)


def timed(function: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds of one call, including the device's work, and its result."""
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return time.perf_counter() - start, result


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def measure_in_turn(
    functions: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, label: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds and the first result of each function. label: of the progress bar.

    Each round calls all functions, in alternating order, so that none always profits from the caches of the same other
    one. Before that come rounds that are not counted: one on a CPU, three on a GPU."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    results: dict[str, Any] = {}
    for _ in range(3 if device.type == "cuda" else 1):
        for name, function in functions.items():
            result = timed(function, device)[1]
            if name not in results:  # a copy, since a compiled network overwrites its result in the next call
                results[name] = result.clone() if isinstance(result, Tensor) else result
    for i in tqdm(range(rounds), desc=label, unit="round"):
        for name in list(functions)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(timed(functions[name], device)[0])
    return {name: statistics.median(each) for name, each in times.items()}, results


def rows_with_ratios(part: str, seconds: Mapping[str, float]) -> list[Row]:
    """seconds: contestant -> seconds; ratios are to the first one."""
    first = next(iter(seconds.values()))
    return [Row(part, who, spent, first / spent) for who, spent in seconds.items()]


def compare_parts(contestants: Sequence[Contestant], size: int, batch: int, rounds: int) -> list[Row]:
    """A row for each part of an edit and each contestant. Differences are from the first contestant that is Ours."""
    ours = next(c for c in contestants if isinstance(c, Ours))
    edit, device = ours.pipeline, ours.pipeline.device
    given = Pictures.random(size, batch)
    triples = zip(given.images, given.masks, given.references, strict=True)
    inputs = stack([edit.prepare(*each, size, size) for each in triples])
    side = size // edit.model.first_stage_model.factor
    generator = torch.Generator().manual_seed(1)
    x, z = (torch.randn(batch, edit.model.channels, side, side, generator=generator).to(device) for _ in range(2))
    functions = {c.name: c.parts(inputs, x, z) for c in contestants}
    rows = []
    for part in PARTS:
        those = {name: parts[part] for name, parts in functions.items() if part in parts}
        times, results = measure_in_turn(those, rounds, device, part)
        if part != RECTANGLE:  # the rectangle is compared with the complete step, which comes before it
            first, exact = times[contestants[0].name], results[ours.name].float()
        for name, seconds in times.items():
            error = results[name].float() - exact
            rms = (error.norm() / exact.norm()).item()
            rows.append(Row(part, name, seconds, first / seconds, error.abs().max().item(), rms))
    return rows


def estimate_edits(rows: Sequence[Row]) -> list[Row]:
    """Rows of compare_parts -> the time of an edit of STEPS PLMS steps, as the sum of its parts."""
    totals: dict[str, float] = {}
    for row in rows:
        totals[row.who] = totals.get(row.who, 0.0) + PARTS[row.part] * row.seconds
    return rows_with_ratios(f"edit, {STEPS} steps, from its parts", totals)


def compare_edits(calls: Mapping[str, Callable[[], Any]], batch: int, rounds: int, device: torch.device) -> list[Row]:
    """A row for each contestant's complete edits, from pictures to pictures, `batch` in each call."""
    times, _ = measure_in_turn(calls, rounds, device, f"edits, {batch} at once")
    rows = rows_with_ratios(f"edit, measured, {batch} at once", times)
    return [dataclasses.replace(row, edits_per_second=batch / row.seconds) for row in rows]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the peak that other rates are compared with."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(timed(lambda: a @ a, device)[0] for _ in range(8))
