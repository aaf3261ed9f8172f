"""Fewer steps in the small world: ways to sample, compared with 50 steps of PLMS, case by case and with the same seeds.

Differences are paired: both rows edit the same 600 cases from the same noise. The difficulty of a case cancels out, so
the interval of a difference is narrower than those of the two rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ldm.evaluation.benchmark import mean_interval
from ldm.fast.region import Area, PartialPicture, Rectangle, RegionEps
from ldm.miniworld.table import COLUMNS, Estimate, Row, Scored, decimals_of, interval_around
from ldm.models.diffusion.denoiser import guided_eps
from ldm.models.diffusion.presets import PRESETS, Preset
from ldm.models.diffusion.sampling import Eps, sample
from ldm.models.diffusion.schedule import NoiseSchedule

REFERENCE = Preset()  # the others are compared with it
ANOTHER_SEED = "plms 50, another seed"  # its difference is due to chance alone
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
STUDENT_CANDIDATES = PRESETS  # of a distilled model, sampled at scale 1
PICTURED = ("plms 50", ANOTHER_SEED, "plms 10", *PRESETS, "distilled, fast")  # rows in the picture
COMPARED = {key: head for key, head in COLUMNS.items() if key != "copy_paste"}


def evaluations(preset: Preset, scale: float, schedule: NoiseSchedule) -> tuple[int, int]:
    """How often an edit evaluates the UNet for the whole picture, and for a rectangle around the region. A guided step
    counts twice: with the condition and with the learned vector."""
    whole, partial = 0, 0

    def denoiser(inpaint: Tensor, contexts: Tensor) -> Eps:
        def eps_of(x: Tensor, t: int, area: Area) -> Tensor:
            nonlocal whole, partial
            if isinstance(area, PartialPicture):
                partial += len(contexts)
            else:
                whole += len(contexts)
            return torch.zeros(len(contexts), 4, 1, 1)

        return RegionEps(eps_of, Rectangle(0, 1, 0, 1, 1), preset.refresh, schedule)

    c = v = torch.zeros(1, 1, 1)
    eps = guided_eps(denoiser, torch.zeros(1, 5, 1, 1), c, v, scale, preset.interval)
    sample(preset.sampler, eps, torch.zeros(1, 4, 1, 1), schedule, preset.steps)
    return whole, partial


def _compared(*rows: Row) -> list[str]:
    """The metrics of COMPARED that all rows have."""
    return [key for key in COMPARED if all(key in row.scores for row in rows)]


def differences(own: Scored, reference: Scored) -> dict[str, Estimate]:
    """Metric -> own score minus the reference's, by the paired bootstrap (Efron 1979)."""
    found = {}
    for key in _compared(own.row):
        value = own.row.scores[key].value - reference.row.scores[key].value
        if key == "fid_clip":
            low, high = interval_around(value, own.fids - reference.fids)  # both from the same resampled pictures
        else:
            pairs = ((a.values[key], b.values[key]) for a, b in zip(own.cases, reference.cases, strict=True))
            low, high = mean_interval(np.array([a - b for a, b in pairs if None not in (a, b)]))
        found[key] = Estimate(value, low, high)
    return found


def is_worse(key: str, value: float, difference: Estimate) -> bool:
    """Whether a metric's value is worse than the reference's by more than chance."""
    if key in ("shape", "pattern", "top1", "clip_score"):
        return difference.high < 0
    if key == "seam" and value < 1:  # 1 where the edge does not show
        return difference.high < 0
    return difference.low > 0


def table(rows: Mapping[str, Row]) -> str:
    """Rows of --presets as a table in Markdown: evaluations of the UNet (whole pictures + rectangles), each score, and
    the interval of its difference to the first row's score; in bold where it is worse by more than chance."""
    return "\n".join(_lines(rows))


def _lines(rows: Mapping[str, Row]) -> Iterator[str]:
    shown = _compared(*rows.values())
    yield "| | evaluations | " + " | ".join(COMPARED[key] for key in shown) + " |"
    yield "|---" * (len(shown) + 2) + "|"
    for name, row in rows.items():
        count = " + ".join(str(n) for n in row.evaluations or () if n)
        yield f"| {name} | {count} | " + " | ".join(_cell(key, row) for key in shown) + " |"


def _cell(key: str, row: Row) -> str:
    digits = decimals_of(key)
    value = row.scores[key].value
    if row.difference is None:
        return f"{value:.{digits}f}"
    difference = row.difference[key]
    cell = f"{value:.{digits}f} ({difference.low:+.{digits}f} to {difference.high:+.{digits}f})"
    return f"**{cell}**" if is_worse(key, value, difference) else cell
