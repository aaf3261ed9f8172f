"""Where guidance makes a sampler unstable: the colour error of edits in the small world over scales, samplers, steps.

A multistep method extrapolates from earlier predictions, whose differences a guidance scale s multiplies by s. With too
few steps for a scale, colours run away. The same scale with another sampler shows that guidance is not at fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ldm.editing.options import Sampling
from ldm.files import staging

SOLVERS = {
    "plms": (10, 15, 25, 35, 50, 100),
    "ddim": (10, 25),
    "dpm++": (6, 8, 12),
    "unipc": (8, 12),
}
SCALES = (1.0, 3.0, 5.0, 7.5, 10.0, 15.0)
TOLERANCE = 1.5  # times the error of the best sampler at the same scale: more than this is called unstable

Cells = dict[str, list[float]]  # "plms 25" -> the colour error at each of the scales


def sweep(score: Callable[[Sampling], float], solvers: Mapping[str, Sequence[int]], scales: Sequence[float]) -> Cells:
    """The colour error of each sampler, number of steps and scale. score: a Sampling -> the error of its edits."""
    return {
        f"{name} {steps}": [score(Sampling(scale, name, steps)) for scale in scales]
        for name, each in solvers.items()
        for steps in each
    }


def stable_scales(cells: Cells, scales: Sequence[float]) -> dict[str, float]:
    """Row -> the largest scale up to which its colour error stays within TOLERANCE times the best row's; 0: none."""
    best = np.min(list(cells.values()), axis=0)
    found = {}
    for name, errors in cells.items():
        stable = np.array(errors) <= best * TOLERANCE
        count = len(scales) if stable.all() else int(np.argmin(stable))
        found[name] = scales[count - 1] if count else 0.0
    return found


def table(cells: Cells, scales: Sequence[float]) -> str:
    """The cells as a table in Markdown, in bold where they are unstable."""
    limits = stable_scales(cells, scales)
    lines = ["| sampler, steps | " + " | ".join(f"scale {scale:g}" for scale in scales) + " |"]
    lines.append("|---" * (len(scales) + 1) + "|")
    for name, errors in cells.items():
        row = [
            f"{error:.1f}" if scale <= limits[name] else f"**{error:.1f}**"
            for scale, error in zip(scales, errors, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def write(path: Path, cells: Cells, scales: Sequence[float]) -> None:
    """Writes the cells as JSON."""
    content = {"scales": list(scales), "colour_error": cells, "stable_scale": stable_scales(cells, scales)}
    with staging(path.parent) as temporary:
        (temporary / path.name).write_text(json.dumps(content, indent=1) + "\n")
