"""An evaluation as one HTML page: its scores, and its cases with their pictures."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ldm.evaluation.metrics import GROUPS
from ldm.evaluation.scorers import Case
from ldm.evaluation.summary import CaseScores, Score, Summary
from ldm.files import staging
from ldm.util import UserError

PARTS = ("source", "to paint", "reference", "result")  # the pictures of a case, in this order
TINT = (228, 0, 132)  # of the region to paint; a colour that is rare in photos
NO_PICTURES = ' class="bare"'  # attribute of a case's row
BETTER = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better"), "1": ("→ 1", "nearest to 1 is best")}


DIALOG = """
<dialog aria-label="one case, large"><header><code></code><button type="button" id="previous">↑ previous</button>
<button type="button" id="next">↓ next</button><button type="button" id="close">✕ close</button></header>
<button type="button" class="big" aria-label="the next picture" autofocus><img alt=""></button><nav></nav>
<p id="scores"></p><p class="soft">← → flip between the pictures of a case, ↑ ↓ go to another, Esc closes</p></dialog>
"""


def write_page(
    path: Path,
    summary: Summary,
    load: Callable[[str], Case],
    groups: Mapping[str, str] = GROUPS,
    max_cases: int = 400,
    tile: int = 160,
) -> None:
    """Writes one HTML file atomically. It needs no other file and no network.

    load: id of a case -> its pictures; if it raises UserError, the page shows the message. One case is loaded at a
    time. groups: key -> title of metrics, in order. max_cases: if there are more, only the worst and the best by CLIP
    score (or by the first metric of single cases) get pictures. tile: longer side of a picture, in pixels.
    Raises UserError: it cannot be written."""
    columns = _columns(summary)
    usable = [column for column in columns if column.numbers]
    first = next((column for column in usable if column.key == "clip_score"), usable[0] if usable else None)
    shown, words = _cases_with_pictures(len(summary.per_case), first, max_cases)
    cells = (_tiles(case.id, load, tile) if i in shown else None for i, case in enumerate(summary.per_case))
    pieces = (
        _report(summary, columns, groups),
        _list(summary.per_case, columns, cells, len(shown), words),
        _script(columns, first),
    )
    with (
        staging(path.parent) as folder,
        open(folder / path.name, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(itertools.chain(*pieces))


@dataclass(frozen=True)
class _Column:
    """A metric of single cases: its finite values, one per case."""

    key: str
    name: str
    better: Literal["higher", "lower", "1"]
    values: tuple[float | None, ...]

    @property
    def numbers(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def decimals(self) -> int:
        return _decimals(self.numbers)


def _columns(summary: Summary) -> list[_Column]:
    """The metrics that single cases have, in the order of the summary."""
    columns = []
    for metric in (score.metric for score in summary.scores):
        if any(metric.key in case.values for case in summary.per_case):
            values = tuple(_finite(case.values.get(metric.key)) for case in summary.per_case)
            columns.append(_Column(metric.key, metric.name, metric.better, values))
    return columns


def _read_asset(name: str) -> str:
    """The text of a file in this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _decimals(values: Sequence[float]) -> int:
    """Decimals that show three digits of the median, from 2 to 6."""
    median = statistics.median(map(abs, values)) if values else 0
    return min(6, max(2, 2 - math.floor(math.log10(median)))) if median else 2


def _format(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _cases_with_pictures(count: int, column: _Column | None, max_cases: int) -> tuple[set[int], str]:
    """Numbers of the cases that get pictures, chosen by a column, and a sentence that says which; "" for all cases."""
    if count <= max_cases or column is None:
        words = f"Pictures of {max_cases} of {count} cases: the first." if count > max_cases else ""
        return set(range(min(max_cases, count))), words
    sign = -1 if column.better == "lower" else 1
    goodness = [x if x is None else -abs(x - 1) if column.better == "1" else sign * x for x in column.values]
    ranked = sorted((i for i, x in enumerate(goodness) if x is not None), key=goodness.__getitem__)
    half = max_cases // 2
    shown = {*ranked[:half], *ranked[len(ranked) - half :]}
    worst, best = {"1": ("farthest from 1", "nearest to 1")}.get(column.better, ("lowest", "highest")[::sign])
    which = f"the {half} {worst} and {half} {best} in" if len(shown) == 2 * half else "all that have a"
    return shown, f"Pictures of {len(shown)} of {count} cases: {which} {column.name}."


def _report(summary: Summary, columns: Sequence[_Column], groups: Mapping[str, str]) -> Iterator[str]:
    """The page up to the list of cases."""
    bench, results, date = map(escape, (summary.bench, summary.results, summary.date))
    yield f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{bench}: {results}</title><style>{_read_asset("page.css")}</style></head><body>
<header><p class="over">Exemplar-based editing, evaluated</p><h1>{bench}</h1>
<p class="soft"><code>{results}</code> · {date}</p></header><main>"""
    yield from _metrics(summary.scores, {column.key: column.numbers for column in columns}, groups)
    yield from (f"<p>Not computed: <b>{escape(name)}</b>: --skip</p>" for name in summary.skipped)
    yield f"<h2>What it rests on</h2><p>{len(summary.per_case)} of {summary.expected} cases are scored.</p>"
    if problems := summary.problems:
        yield f"<details{' open' * (len(problems) <= 5)}><summary>{len(problems)} with problems</summary><ul>"
        yield from (f"<li><code>{escape(name)}</code> {escape(text)}</li>" for name, text in problems.items())
        yield "</ul></details>"
    code = '<br><code class="soft"'
    yield from _pairs(
        "Weights",
        {
            name: f"{escape(x['model'])}{code}>{escape(x['file'])}</code>"
            f'{code} title="{escape(x["sha256"])}">sha256 {escape(x["sha256"][:12])}</code>'
            for name, x in summary.weights.items()
        },
    )
    yield from _pairs("Settings", {name: escape(str(x)) for name, x in (summary.settings or {}).items()})


def _pairs(title: str, pairs: dict[str, str]) -> Iterator[str]:
    """A titled list of names and HTML, unless it is empty."""
    if pairs:
        yield f"<h3>{title}</h3><dl>"
        yield from (f"<div><dt>{escape(name)}</dt><dd>{words}</dd></div>" for name, words in pairs.items())
        yield "</dl>"


def _metrics(
    scores: Sequence[Score], by_case: Mapping[str, Sequence[float]], groups: Mapping[str, str]
) -> Iterator[str]:
    """The table of metrics, group by group. by_case: key -> the values of single cases."""
    yield '<table class="metrics"><thead><tr>'
    for name in ("Metric", "Value", "95% interval", "Cases", "Over the cases", "What it says"):
        yield f'<th scope="col">{name}</th>'
    yield "</tr></thead>"
    for group, title in groups.items():
        if members := [score for score in scores if score.metric.group == group]:
            yield f'<tbody class="{group}"><tr class="group"><th scope="rowgroup" colspan="6">{title}</th></tr>'
            yield from (_metric(score, by_case.get(score.metric.key, [])) for score in members)
            yield "</tbody>"
    yield "</table>"


def _metric(score: Score, by_case: Sequence[float]) -> str:
    """A row of the table of metrics."""
    metric = score.metric
    sign, words = BETTER[metric.better]
    value, low, high = map(_finite, (score.value, score.low, score.high))
    value, low, high = (_format(x, _decimals([value or 0])) for x in (value, low, high))
    return (
        f'<tr><th scope="row" class="name">{escape(metric.name)}'
        f' <span class="arrow" role="img" aria-label="{words}" title="{words}">{sign}</span></th>'
        f'<td class="value">{value}</td><td class="fine">{"" if "-" in (low, high) else f"{low} to {high}"}</td>'
        f'<td class="fine count">{score.cases}</td><td class="spread">{_spread(by_case)}</td>'
        f'<td class="meaning">{escape(metric.meaning)}</td></tr>'
    )


def _spread(values: Sequence[float]) -> str:
    """A small histogram with the numbers at its ends."""
    if len(values) < 2:
        return ""
    counts, edges = np.histogram(values, bins=min(28, 2 + int(len(values) ** 0.5)))
    steps = "".join(f"V{24 - 24 * count / counts.max():.1f}h1" for count in counts)
    low, high = (_format(edge, _decimals(values)) for edge in (edges[0], edges[-1]))
    return (
        f'<svg viewBox="0 0 {len(counts)} 24" preserveAspectRatio="none" role="img" aria-label="histogram">'
        f'<path d="M0 24{steps}V24Z"/></svg><small><span>{low}</span><span>{high}</span></small>'
    )


def _list(
    cases: Sequence[CaseScores], columns: Sequence[_Column], pictures: Iterator[str | None], shown: int, words: str
) -> Iterator[str]:
    """The list of cases, after the empty sections that the script fills with the worst and the best.

    pictures: each case's cells, or None; shown: the number of cases with pictures; words: a sentence about them."""
    partly = shown < len(cases)
    yield '<section id="strips" hidden><h2>Worst and best</h2><p><label>by <select id="metric"></select></label>'
    yield f' <span class="soft">{"of the cases with pictures" * partly}</span></p><h3>Worst</h3>'
    yield '<div class="strip" id="worst"></div><h3>Best</h3><div class="strip" id="best"></div></section>'
    yield f"<h2>All cases</h2><p>{escape(words) if cases else 'No case was scored.'}</p>"
    yield f'<p id="some" hidden><label><input type="checkbox" id="only"{" checked" * partly}>'
    yield ' only those with pictures</label></p><p class="soft">Tinted: the region to paint.</p>'
    yield f'<table class="cases" style="--n: {len(columns)}"><thead><tr><th scope="col" data-column="-1">case</th>'
    yield from (f'<th scope="col" class="part">{part}</th>' for part in PARTS)
    names = [escape(column.name) for column in columns]
    yield from (f'<th scope="col" class="score" data-column="{i}">{name}</th>' for i, name in enumerate(names))
    yield "</tr></thead><tbody>\n"
    formats = [(name, column.values, column.decimals) for name, column in zip(names, columns, strict=True)]
    for i, (case, cells) in enumerate(zip(cases, pictures, strict=True)):
        yield f'<tr{NO_PICTURES if cells is None else ""}><th scope="row"><code>{escape(case.id)}</code></th>'
        yield '<td class="none">no pictures</td>' if cells is None else cells
        for name, values, decimals in formats:
            yield f'<td class="score" data-label="{name}">{_format(values[i], decimals)}</td>'
        yield "</tr>\n"
    yield "</tbody></table></main>"


def _tiles(name: str, load: Callable[[str], Case], tile: int) -> str:
    """Cells with the four pictures of a case, or one cell that says why they are missing."""
    try:
        case = load(name)
        source, reference, result = (picture.copy() for picture in (case.source, case.reference, case.result))
        for picture in (source, reference, result):
            picture.thumbnail((tile, tile), Image.Resampling.LANCZOS)
        cells = zip(PARTS, (source, _with_region(source, case.mask), reference, result), strict=True)
        return "".join(_cell(f"{part}, case {name}", picture) for part, picture in cells)
    except UserError as error:
        return f'<td class="none">{escape(str(error))}</td>'


def _with_region(source: Image.Image, mask: Image.Image) -> Image.Image:
    """The source with the region to paint tinted and outlined. mask: L, 255 = paint, of any size."""
    region = mask.resize(source.size).point([255 * (level >= 128) for level in range(256)])
    tinted = Image.composite(Image.blend(source, Image.new("RGB", source.size, TINT), 0.55), source, region)
    edge = ImageChops.subtract(region, region.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", source.size, "white"), tinted, edge)


def _cell(alt: str, picture: Image.Image) -> str:
    """A picture inside the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<td><button><img loading="lazy" decoding="async" alt="{escape(alt)}" src="{uri}"></button></td>'


def _script(columns: Sequence[_Column], first: _Column | None) -> Iterator[str]:
    """The script and its data. first: the column by which cases are ranked when the page opens."""
    heads = [
        {"name": column.name, "better": column.better, "first": column is first, "any": bool(column.numbers)}
        for column in columns
    ]
    values = [column.values for column in columns]
    data = json.dumps({"parts": PARTS, "columns": heads, "values": values}, allow_nan=False)
    data = data.replace("<", "\\u003c")  # "</script>" would end the script
    yield f'{DIALOG}<script type="application/json" id="data">{data}</script>'
    yield f'<script>"use strict";{{{_read_asset("page.js")}}}</script></body></html>\n'
