"""The losses of several runs, as one table and one picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ldm.images import grid

COLUMNS = ("run", "step", "minutes", "name", "value")
PANEL, MARGIN = (480, 240), 24  # pixels
COLOURS = ("silver", "crimson")

Row = tuple[str, int, float, str, float]  # of COLUMNS


def read_curves(name: str, run: Path) -> list[Row]:
    """Everything that a run logged under train/ and val/. minutes: of the last line that has them, else 0."""
    rows, minutes = [], 0.0
    files = run.glob("csv/version_*/metrics.csv")
    for path in sorted(files, key=lambda path: int(path.parent.name.removeprefix("version_"))):
        with open(path, newline="") as file:
            for line in csv.DictReader(file):
                minutes = float(line.get("minutes") or minutes)
                rows += [
                    (name, int(line["step"]), round(minutes, 4), key, float(value))
                    for key, value in line.items()
                    if key.startswith(("train/", "val/")) and value
                ]
    return rows


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(rows)


def draw_curves(rows: Sequence[Row], losses: Mapping[str, Sequence[str]]) -> Image.Image:
    """A panel per run: its losses over steps, on a logarithmic scale. losses: run -> their names, for COLOURS."""
    panels = []
    for run, names in losses.items():
        points = [[(row[1], row[4]) for row in rows if row[0] == run and row[3] == name] for name in names]
        panels.append(draw_panel(run, dict(zip(names, points, strict=True))))
    return grid(panels, rows=len(panels))


def draw_panel(title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Image.Image:
    """curves: name -> points (step, value); the ends of both axes are written at the margins."""
    panel = Image.new("RGB", PANEL, "white")
    draw = ImageDraw.Draw(panel)
    curves = {name: [p for p in curve if 0 < p[1] < math.inf] for name, curve in curves.items()}
    points = [point for curve in curves.values() for point in curve]
    draw.text((MARGIN, 4), title if points else f"{title}: nothing logged", fill="black")
    if not points:
        return panel
    last = max(step for step, _ in points) or 1
    low, high = (math.log(end(value for _, value in points)) for end in (min, max))
    width, height = PANEL[0] - 2 * MARGIN, PANEL[1] - 2 * MARGIN

    def place(step: int, value: float) -> tuple[float, float]:
        return MARGIN + width * step / last, MARGIN + height * (high - math.log(value)) / ((high - low) or 1)

    for i, (name, curve) in enumerate(curves.items()):
        places = [place(*point) for point in curve]
        draw.line(places, fill=COLOURS[i], width=1 + i)
        for x, y in places:
            draw.ellipse((x - i, y - i, x + i, y + i), fill=COLOURS[i])
        draw.text((PANEL[0] // 3 * (i + 1), 4), name, fill=COLOURS[i])
    draw.text((2, MARGIN - 12), f"{math.exp(high):.3g}", fill="black")
    draw.text((2, PANEL[1] - MARGIN), f"{math.exp(low):.3g}", fill="black")
    draw.text((PANEL[0] - 100, PANEL[1] - MARGIN + 6), f"{last:,} steps", fill="black")
    return panel
