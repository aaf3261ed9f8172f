"""Likeness against realism: rows of the table as a picture, a point each, an SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape

from ldm.miniworld.table import COLUMNS, Row

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 460, 60, 210, 20, 50  # pixels; the margins are around the axes
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
LIKENESS, REALISM = ("top1", "shape"), "fid_clip"
FONT = 'font-family="sans-serif" font-size="12"'
MAX_STEPS = 6  # between the numbers of an axis


def frontier(rows: Mapping[str, Row]) -> str:
    """Up is more like the reference, to the right more realistic: top-1, or the share of shapes, over FID.

    Rows named "<model>, scale <number>" are joined to one line for each model; the points bear their scales."""
    likeness = next(key for key in LIKENESS if any(key in row.scores for row in rows.values()))
    points = {name: row for name, row in rows.items() if likeness in row.scores}
    groups: dict[str, list[str]] = {}
    for name in points:
        groups.setdefault(name.partition(", scale ")[0], []).append(name)
    across, up = (_ticks(max(row.scores[key].high for row in points.values())) for key in (REALISM, likeness))

    def place(fid: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (1 - fid / across[-1])
        return round(x, 1), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / up[-1], 1)

    def marks(group: str, colour: str) -> Iterator[str]:
        middles = []
        for name in groups[group]:
            fid, value = (points[name].scores[key] for key in (REALISM, likeness))
            x, y = place(fid.value, value.value)
            (x0, y0), (x1, y1) = place(fid.high, value.low), place(fid.low, value.high)
            yield f'<path d="M{x0} {y}H{x1}M{x} {y0}V{y1}" stroke="{colour}" stroke-opacity="0.35" fill="none"/>'
            yield f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
            if ", scale " in name and len(groups[group]) > 1:
                yield f'<text x="{x + 6}" y="{y - 6}" fill="{colour}">{escape(name.rpartition(" ")[2])}</text>'
            middles.append(f"{x},{y}")
        yield f'<polyline points="{" ".join(middles)}" stroke="{colour}" fill="none"/>'

    x0, y0 = place(across[-1], 0)
    x1, y1 = place(0, up[-1])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{x0} {y1}V{y0}H{x1}" stroke="black" fill="none"/>',
        f'<text x="{(x0 + x1) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{COLUMNS[REALISM]} (more realistic →)</text>',
        f'<text transform="translate(14 {(y0 + y1) / 2}) rotate(-90)" text-anchor="middle">'
        f"{COLUMNS[likeness]} (more like the reference →)</text>",
    ]
    lines += [f'<text x="{place(tick, 0)[0]}" y="{y0 + 18}" text-anchor="middle">{tick:g}</text>' for tick in across]
    lines += [f'<text x="{x0 - 8}" y="{place(0, tick)[1] + 4}" text-anchor="end">{tick:g}</text>' for tick in up]
    for i, group in enumerate(groups):
        colour = COLOURS[i % len(COLOURS)]
        lines += marks(group, colour)
        lines.append(f'<text x="{x1 + 16}" y="{y1 + 14 + 18 * i}" fill="{colour}">● {escape(group)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _ticks(largest: float) -> list[float]:
    """From 0 to `largest` or a little more, in steps of 1, 2 or 5 times a power of ten, at most MAX_STEPS of them."""
    largest = largest or 1.0  # all are 0
    power = 10.0 ** math.floor(math.log10(largest / MAX_STEPS))
    step = next(step for factor in (1, 2, 5, 10) if (step := factor * power) * MAX_STEPS >= largest)
    return [round(i * step, 9) for i in range(math.ceil(largest / step) + 1)]
