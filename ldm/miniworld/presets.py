"""Fewer steps in the small world: ways to sample beside 50 steps of PLMS, case by case, with the same seeds.

The difference of two rows is of pairs: both edited the same 600 cases from the same noise, so that what a case makes
easy or hard for both falls out, and the interval is narrower than those of the rows by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.evaluation.benchmark import mean_interval
from ldm.fast.region import PartialPicture, Rectangle, RegionEps, WholePicture
from ldm.miniworld.table import COLUMNS, Scored, interval_around
from ldm.models.diffusion.denoiser import guided_eps
from ldm.models.diffusion.presets import PRESETS, Preset
from ldm.models.diffusion.sampling import Eps, sample
from ldm.models.diffusion.schedule import NoiseSchedule

REFERENCE = Preset()  # what the others are compared with
ANOTHER_SEED = "plms 50, another seed"  # what chance alone does
CANDIDATES = {
    "plms 50": REFERENCE,
    "plms 10": Preset("plms", 10),
    "unipc 12": Preset("unipc", 12),
    "dpm++ 12": Preset("dpm++", 12),
    "dpm++ 12, unguided below 250": Preset("dpm++", 12, (250, 999)),
    "fast, all computed": PRESETS["fast"]._replace(refresh=1),
    **PRESETS,
    ANOTHER_SEED: REFERENCE,
}
OF_STUDENT = PRESETS  # guidance is built in
SHOWN = ("plms 50", ANOTHER_SEED, "plms 10", *PRESETS, "distilled, fast")  # in the picture
METRICS = {key: head for key, head in COLUMNS.items() if key != "copy_paste"}


def evaluations(preset: Preset, scale: float, schedule: NoiseSchedule) -> tuple[int, int]:
    """How often an edit evaluates the UNet, once with the condition, once with the learned vector where there is
    guidance: of the whole picture, and of a rectangle around the region."""
    seen = {True: 0, False: 0}

    def denoiser(inpaint: Tensor, contexts: Tensor) -> Eps:
        def eps_of(x: Tensor, t: int, area: WholePicture) -> Tensor:
            seen[isinstance(area, PartialPicture)] += len(contexts)
            return torch.zeros(len(contexts), 4, 1, 1)

        return RegionEps(eps_of, Rectangle(0, 1, 0, 1, 1), preset.refresh, schedule)

    c = v = torch.zeros(1, 1, 1)
    eps = guided_eps(denoiser, torch.zeros(1, 5, 1, 1), c, v, scale, preset.interval)
    sample(preset.sampler, eps, torch.zeros(1, 4, 1, 1), schedule, preset.steps)
    return seen[False], seen[True]


def differences(own: Scored, reference: Scored) -> dict[str, dict[str, float]]:
    """Metric -> value, low, high of one's score less the other's, by the paired bootstrap (Efron 1979)."""
    found = {}
    for key in METRICS:
        value = own.row[key]["value"] - reference.row[key]["value"]
        if key == "fid_clip":
            low, high = interval_around(value, own.fids - reference.fids)  # of the same draws
        else:
            pairs = ((a[key], b[key]) for a, b in zip(own.cases, reference.cases, strict=True))
            low, high = mean_interval(np.array([a - b for a, b in pairs if None not in (a, b)]))
        found[key] = {"value": value, "low": low, "high": high}
    return found


def worse(key: str, own: dict[str, float], difference: dict[str, float]) -> bool:
    """Is a score worse than the reference's by more than chance? own: the row's, difference: to the reference."""
    if key in ("shape", "pattern", "clip_score"):
        return difference["high"] < 0
    if key == "seam" and own["value"] < 1:  # 1 where the edge does not show
        return difference["high"] < 0
    return difference["low"] > 0


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows of the --presets mode in Markdown: evaluations of the whole + of a rectangle, each score, and the interval
    of its difference to the first row's; bold where that is worse by more than chance."""
    return "\n".join(_lines(rows))


def _lines(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "| | evaluations | " + " | ".join(METRICS.values()) + " |"
    yield "|---" * (len(METRICS) + 2) + "|"
    for name, row in rows.items():
        count = " + ".join(str(n) for n in row["evaluations"] if n)
        yield f"| {name} | {count} | " + " | ".join(_cell(key, row) for key in METRICS) + " |"


def _cell(key: str, row: dict[str, Any]) -> str:
    digits = 1 if key in ("colour_error", "clip_score") else 2
    value = f"{row[key]['value']:.{digits}f}"
    if "difference" not in row:
        return value
    difference = row["difference"][key]
    cell = f"{value} ({difference['low']:+.{digits}f} to {difference['high']:+.{digits}f})"
    return f"**{cell}**" if worse(key, row[key], difference) else cell
