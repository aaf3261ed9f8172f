"""One page on which a person sees what an evaluation found: its numbers, and its cases with their pictures."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ldm.evaluation.benchmark import GROUPS
from ldm.files import staging
from ldm.util import UserError

Pictures = Callable[[str], dict[str, Image.Image]]
PARTS = ("source", "to paint", "reference", "result")  # the pictures of a case, in this order
TINT = (228, 0, 132)  # of what was to be painted; a colour that photos rarely have
BARE = ' class="bare"'  # of a case without pictures
BETTER = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better"), "1": ("→ 1", "nearest to 1 is best")}


DIALOG = """
<dialog aria-label="one case, large"><header><code></code><button type="button" id="previous">↑ previous</button>
<button type="button" id="next">↓ next</button><button type="button" id="close">✕ close</button></header>
<button type="button" class="big" aria-label="the next picture" autofocus><img alt=""></button><nav></nav>
<p id="scores"></p><p class="soft">← → flip between the pictures of a case, ↑ ↓ go to another, Esc closes</p></dialog>
"""


def write_page(path: Path, summary: dict, pictures: Pictures, most: int = 400, tile: int = 160) -> None:
    """One HTML file that needs no other and no network, whole or absent.

    summary: results, bench, date; cases: expected, scored, problems [id, problem]; metrics [key, name, group (paper or
    beside), better (higher, lower or 1), value, low, high, cases, meaning]; left_out [name, why]; weights {name: model,
    file, sha256}; settings {name: value} or None; per_case [id and its scores by key; None: it has none].
    pictures(id): source, mask (255 = painted), reference and result; where it raises UserError, its sentence is shown.
    It is asked for one case after the other, and none is kept. most: where there are more cases, only the worst and the
    best by CLIP score (or the first metric that cases have) get pictures. tile: the longer side of those, in pixels.
    Raises UserError where it cannot be written."""
    cases, columns = summary["per_case"], _columns(summary)
    shown, words = _choice(cases, columns, most)
    pieces = (_report(summary, columns), _list(cases, columns, pictures, shown, words, tile), _script(columns))
    with (
        staging(path.parent) as folder,
        open(folder / path.name, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(itertools.chain(*pieces))


def _beside(name: str) -> str:
    """The text of a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _decimals(values: Sequence[float]) -> int:
    """Enough for three digits of a usual one, and 2 to 6."""
    usual = statistics.median(map(abs, values)) if values else 0
    return min(6, max(2, 2 - math.floor(math.log10(usual)))) if usual else 2


def _written(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _columns(summary: dict) -> list[dict]:
    """The metrics that single cases have: key, name, better, values (one per case, or None), some (those that are
    numbers), decimals, first (is it the one by which cases are chosen?)."""
    metrics = {metric["key"]: metric for metric in summary["metrics"]}
    keys = dict.fromkeys(key for case in summary["per_case"] for key in case if key != "id")
    columns = []
    for key in [key for key in metrics if key in keys] + [key for key in keys if key not in metrics]:
        column = {"name": key, "better": "higher"} | metrics.get(key, {"key": key})
        column["values"] = [_finite(case.get(key)) for case in summary["per_case"]]
        column["some"] = [value for value in column["values"] if value is not None]
        columns.append(column | {"decimals": _decimals(column["some"])})
    usable = [column["key"] for column in columns if column["some"]]
    first = "clip_score" if "clip_score" in usable else next(iter(usable), None)
    return [column | {"first": column["key"] == first} for column in columns]


def _choice(cases: list[dict], columns: list[dict], most: int) -> tuple[set[int], str]:
    """The positions of the cases that get pictures, and a sentence about which those are, "" if all do."""
    column = next((column for column in columns if column["first"]), None)
    if len(cases) <= most or column is None:
        words = f"Pictures of {most} of {len(cases)} cases: the first." if len(cases) > most else ""
        return set(range(min(most, len(cases)))), words
    sign = -1 if column["better"] == "lower" else 1
    goodness = [x if x is None else -abs(x - 1) if column["better"] == "1" else sign * x for x in column["values"]]
    ranked = sorted((i for i, x in enumerate(goodness) if x is not None), key=goodness.__getitem__)
    half = most // 2
    shown = {*ranked[:half], *ranked[len(ranked) - half :]}
    worst, best = {"1": ("farthest from 1", "nearest to 1")}.get(column["better"], ("lowest", "highest")[::sign])
    which = f"the {half} {worst} and {half} {best} in" if len(shown) == 2 * half else "all that have a"
    return shown, f"Pictures of {len(shown)} of {len(cases)} cases: {which} {column['name']}."


def _report(summary: dict, columns: list[dict]) -> Iterator[str]:
    """The page as far as the cases."""
    bench, results, date = (escape(str(summary[key])) for key in ("bench", "results", "date"))
    yield f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{bench}: {results}</title><style>{_beside("page.css")}</style></head><body>
<header><p class="over">Exemplar-based editing, evaluated</p><h1>{bench}</h1>
<p class="soft"><code>{results}</code> · {date}</p></header><main>"""
    yield from _metrics(summary["metrics"], {column["key"]: column["some"] for column in columns})
    yield from (f"<p>Not computed: <b>{escape(x['name'])}</b>: {escape(x['why'])}</p>" for x in summary["left_out"])
    count = summary["cases"]
    yield f"<h2>What it rests on</h2><p>{count['scored']} of {count['expected']} cases are scored.</p>"
    if problems := count["problems"]:
        yield f"<details{' open' * (len(problems) <= 5)}><summary>{len(problems)} with problems</summary><ul>"
        yield from (f"<li><code>{escape(x['id'])}</code> {escape(x['problem'])}</li>" for x in problems)
        yield "</ul></details>"
    code = '<br><code class="soft"'
    yield from _pairs(
        "Weights",
        {
            name: f"{escape(x['model'])}{code}>{escape(x['file'])}</code>"
            f'{code} title="{escape(x["sha256"])}">sha256 {escape(x["sha256"][:12])}</code>'
            for name, x in summary["weights"].items()
        },
    )
    yield from _pairs("Settings", {name: escape(str(x)) for name, x in (summary["settings"] or {}).items()})


def _pairs(title: str, pairs: dict[str, str]) -> Iterator[str]:
    """A list of names and HTML; nothing where it is empty."""
    if pairs:
        yield f"<h3>{title}</h3><dl>"
        yield from (f"<div><dt>{escape(name)}</dt><dd>{words}</dd></div>" for name, words in pairs.items())
        yield "</dl>"


def _metrics(metrics: list[dict], by_case: dict[str, list[float]]) -> Iterator[str]:
    """The table of what was measured, group by group."""
    yield '<table class="metrics"><thead><tr>'
    for name in ("Metric", "Value", "95% interval", "Cases", "Over the cases", "What it says"):
        yield f'<th scope="col">{name}</th>'
    yield "</tr></thead>"
    for group, title in GROUPS.items():
        if members := [metric for metric in metrics if metric["group"] == group]:
            yield f'<tbody class="{group}"><tr class="group"><th scope="rowgroup" colspan="6">{title}</th></tr>'
            yield from (_metric(metric, by_case.get(metric["key"], [])) for metric in members)
            yield "</tbody>"
    yield "</table>"


def _metric(metric: dict, by_case: list[float]) -> str:
    sign, words = BETTER[metric["better"]]
    value, low, high = (_finite(metric[key]) for key in ("value", "low", "high"))
    value, low, high = (_written(x, _decimals([value or 0])) for x in (value, low, high))
    return (
        f'<tr><th scope="row" class="name">{escape(metric["name"])}'
        f' <span class="arrow" role="img" aria-label="{words}" title="{words}">{sign}</span></th>'
        f'<td class="value">{value}</td><td class="fine">{"" if "-" in (low, high) else f"{low} to {high}"}</td>'
        f'<td class="fine count">{metric["cases"]}</td><td class="spread">{_spread(by_case)}</td>'
        f'<td class="meaning">{escape(metric["meaning"])}</td></tr>'
    )


def _spread(values: list[float]) -> str:
    """A little histogram, with its ends."""
    if len(values) < 2:
        return ""
    counts, edges = np.histogram(values, bins=min(28, 2 + int(len(values) ** 0.5)))
    steps = "".join(f"V{24 - 24 * count / counts.max():.1f}h1" for count in counts)
    low, high = (_written(edge, _decimals(values)) for edge in (edges[0], edges[-1]))
    return (
        f'<svg viewBox="0 0 {len(counts)} 24" preserveAspectRatio="none" role="img" aria-label="histogram">'
        f'<path d="M0 24{steps}V24Z"/></svg><small><span>{low}</span><span>{high}</span></small>'
    )


def _list(
    cases: list[dict], columns: list[dict], pictures: Pictures, shown: set[int], words: str, tile: int
) -> Iterator[str]:
    """The cases, one after the other, and before them the places for what the script makes of them."""
    partly = len(shown) < len(cases)
    yield '<section id="strips" hidden><h2>Worst and best</h2><p><label>by <select id="metric"></select></label>'
    yield f' <span class="soft">{"of the cases with pictures" * partly}</span></p><h3>Worst</h3>'
    yield '<div class="strip" id="worst"></div><h3>Best</h3><div class="strip" id="best"></div></section>'
    yield f"<h2>All cases</h2><p>{escape(words) if cases else 'There are none.'}</p>"
    yield f'<p id="some" hidden><label><input type="checkbox" id="only"{" checked" * partly}>'
    yield ' only those with pictures</label></p><p class="soft">Tinted: what was to be painted.</p>'
    yield f'<table class="cases" style="--n: {len(columns)}"><thead><tr><th scope="col" data-column="-1">case</th>'
    yield from (f'<th scope="col" class="part">{part}</th>' for part in PARTS)
    names = [escape(column["name"]) for column in columns]
    yield from (f'<th scope="col" class="score" data-column="{i}">{name}</th>' for i, name in enumerate(names))
    yield "</tr></thead><tbody>\n"
    for i, case in enumerate(cases):
        yield f'<tr{"" if i in shown else BARE}><th scope="row"><code>{escape(case["id"])}</code></th>'
        yield _tiles(case["id"], pictures, tile) if i in shown else '<td class="none">no pictures</td>'
        for name, column in zip(names, columns, strict=True):
            yield f'<td class="score" data-label="{name}">{_written(column["values"][i], column["decimals"])}</td>'
        yield "</tr>\n"
    yield "</tbody></table></main>"


def _tiles(name: str, pictures: Pictures, tile: int) -> str:
    """The cells with the four pictures of a case, or one that says why there are none."""
    try:
        four = pictures(name)
        source, reference, result = (four[part].convert("RGB") for part in ("source", "reference", "result"))
        for picture in (source, reference, result):
            picture.thumbnail((tile, tile), Image.Resampling.LANCZOS)
        cells = zip(PARTS, (source, _painted(source, four["mask"]), reference, result), strict=True)
        return "".join(_cell(f"{part}, case {name}", picture) for part, picture in cells)
    except UserError as error:
        return f'<td class="none">{escape(str(error))}</td>'


def _painted(source: Image.Image, mask: Image.Image) -> Image.Image:
    """The source, tinted and outlined where the mask is white."""
    region = mask.convert("L").resize(source.size).point([255 * (level >= 128) for level in range(256)])
    tinted = Image.composite(Image.blend(source, Image.new("RGB", source.size, TINT), 0.55), source, region)
    edge = ImageChops.subtract(region, region.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", source.size, "white"), tinted, edge)


def _cell(alt: str, picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<td><button><img loading="lazy" decoding="async" alt="{escape(alt)}" src="{uri}"></button></td>'


def _script(columns: list[dict]) -> Iterator[str]:
    """What the script needs, and the script."""
    heads = [{"name": x["name"], "better": x["better"], "first": x["first"], "any": bool(x["some"])} for x in columns]
    data = json.dumps({"parts": PARTS, "columns": heads, "values": [x["values"] for x in columns]}, allow_nan=False)
    data = data.replace("<", "\\u003c")  # </script> would end it
    yield f'{DIALOG}<script type="application/json" id="data">{data}</script>'
    yield f'<script>"use strict";{{{_beside("page.js")}}}</script></body></html>\n'
