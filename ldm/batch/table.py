"""A table of edits -> jobs.

jobs.csv has the columns image, reference, out, one of mask, box (x0,y0,x1,y1), polygon (x,y x,y x,y ...), alpha (yes)
and an object (click, click_not: x,y x,y ...; snap: as box) and, optionally, every setting of an edit; see COLUMNS.
Names of columns may be those of the flags. Paths are relative to the table's folder; several references of one object
are separated by |. Several regions, which are painted together, and their references are separated by ||. An empty
cell leaves a setting to the flags."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ldm.batch.cells import WRONG, box, context, flag, number, points, together, whole
from ldm.editing.metadata import check_format
from ldm.editing.names import FLAG_NAMES
from ldm.editing.options import Blending, Placement, Sampling, Selection, check_choices
from ldm.editing.regions import KINDS, OBJECT, Region
from ldm.files import check_name
from ldm.models.diffusion.presets import resolve_preset
from ldm.storage import Place, Url, is_url, place
from ldm.tables import read_rows
from ldm.util import UserError

Row = Mapping[str, str]  # column -> what its cell says; empty cells are left out
Kinds = Mapping[str, Callable[[str], Any]]  # column -> its cell's text to a value; raises ValueError


@dataclass(frozen=True)
class Job:
    """A row that can be tried. references: for each of the regions, or one group for all; reference_masks: none, or one
    for each of the references; control_image: or None."""

    line: int
    image: Place
    regions: tuple[Region, ...]
    references: tuple[tuple[Place, ...], ...]
    reference_masks: tuple[tuple[Place, ...], ...]
    out: Place
    seed: int
    sampling: Sampling
    placement: Placement
    blending: Blending
    selection: Selection
    control_image: Place | None = None


@dataclass(frozen=True)
class Defaults:
    """What holds for rows that say nothing else. preset: the name of `sampling`, whose sampler and steps a row must not
    change."""

    seed: int = 321
    sampling: Sampling = Sampling()
    placement: Placement = Placement()
    blending: Blending = Blending()
    preset: str | None = None
    selection: Selection = Selection()


REGION, ONE = "||", "|"  # separate regions, and pictures of one object
REQUIRED = ("image", "reference", "out")
REGIONS = (*KINDS, *OBJECT)
SAMPLING: Kinds = {
    **{"scale": number, "sampler": str.lower, "steps": whole, "eta": number},
    **{"strength": number, "blend_latents": flag, "keep_layout": str.lower, "keep": number},
    **{"control_scale": number, "detail_scale": number},
}
PLACEMENT: Kinds = {
    **{"context": context, "height": whole, "width": whole, "grow": number, "invert": flag},
    **{"reference_fit": str.lower, "reference_cutout": flag, "segment": str, "mask_from_difference": flag},
    **{"mix": number, "together": together, "windows": flag},
}
BLENDING: Kinds = {"background": str.lower, "feather": number}
SELECTION: Kinds = {"best": whole, "best_preset": str.lower, "judge": str}
FILES = ("reference_mask", "control_image")
OR_WORDS = {"segment": ("grabcut", "hub"), "judge": ("clip", "dinov2")}  # a folder, or one of these
COLUMNS = (*REQUIRED, *REGIONS, *FILES, "seed", "preset", *SAMPLING, *PLACEMENT, *BLENDING, *SELECTION)
ALIASES = {name.lower(): column for name, column in FLAG_NAMES.items()} | {"reference_mask_path": "reference_mask"}


class BadRow(NamedTuple):
    """A row that cannot be tried, and why."""

    line: int
    out: str
    reason: str


def read_jobs(path: Place, defaults: Defaults) -> tuple[list[Job], list[BadRow]]:
    """jobs.csv -> its jobs, and the rows that cannot be tried.

    Raises UserError: a missing file, a missing or unknown column, no rows."""
    jobs: dict[str, Job] = {}
    bad = []
    for line, row in _read_table(path):
        try:
            job = _job(line, row, path.parent, defaults)
            out = os.path.normpath(job.out)
            if out in jobs:
                raise UserError(f"out {row['out']} is also the out of line {jobs[out].line}: choose another")
            jobs[out] = job
        except UserError as error:
            bad.append(BadRow(line, row.get("out", ""), str(error)))
    return list(jobs.values()), bad


SURPLUS = "too many values"  # key of the values beyond the last column


def _read_table(path: Place) -> list[tuple[int, Row]]:
    """The numbers of the lines, and their cells by column. Raises UserError."""
    try:
        rows = read_rows(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a CSV file") from error
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}): export it as one") from error
    names = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    columns, rows = [ALIASES.get(name, name) for name in names], rows[1:]
    if fault := _fault(columns, rows):
        raise UserError(f"{path} {fault}: its first row names the columns, from {', '.join(COLUMNS)}")
    named = [i for i, name in enumerate(columns) if name]
    table = []
    for line, cells in rows:
        row = {columns[i]: cells[i].strip() for i in named if i < len(cells) and cells[i].strip()}
        if surplus := [cell for cell in cells[len(columns) :] if cell.strip()]:
            row[SURPLUS] = surplus[0]
        table.append((line, row))
    return table


def _fault(columns: list[str], rows: list[tuple[int, list[str]]]) -> str | None:
    """What is wrong with a table's columns, as the rest of a sentence. A column without a name may be empty or, as
    pandas writes it, number the rows."""
    for i, name in enumerate(columns):
        cells = [row[i].strip() for _, row in rows if i < len(row)]
        if not name and any(cells) and cells != [str(n) for n in range(len(rows))]:
            return f"has no name for its column {i + 1}"
        if name and name not in COLUMNS:
            return f"has an unknown column {name!r}"
        if name and name in columns[:i]:
            return f"has the column {name!r} twice"
    if missing := [name for name in REQUIRED if name not in columns]:
        return f"has no column {missing[0]!r}"
    return None if rows else "has no rows"


def _job(line: int, row: Row, folder: Place, defaults: Defaults) -> Job:
    """Raises UserError for what is wrong with the row."""
    if SURPLUS in row:
        raise UserError("there are more values than columns: quote values that contain commas, such as a box")
    if missing := [name for name in REQUIRED if name not in row]:
        raise UserError(f"{missing[0]} is missing: give one")
    seed = _values(row, {"seed": whole}).get("seed", defaults.seed)
    own = {name for name, words in OR_WORDS.items() if name in row and row[name] not in words}
    row = row | {name: os.fspath(_path(folder, row[name])) for name in own}
    selection = replace(defaults.selection, **_values(row, SELECTION))
    selection.seeds(seed)
    image, out = _path(folder, row["image"]), _joined(folder, row["out"].replace("\\", "/"))
    check_format(out)
    if isinstance(out, Url):
        out.check_writable()
    check_name(out, "out")
    references, masks = (_groups(row.get(column, ""), folder) for column in ("reference", "reference_mask"))
    if masks and [*map(len, masks)] != [*map(len, references)]:
        counts = [sum(map(len, groups)) for groups in (references, masks)]
        raise UserError(f"there are {counts[0]} references and {counts[1]} masks of them: give one for each")
    regions = _regions(row, folder)
    sampling, placement = _sampling(row, defaults), replace(defaults.placement, **_values(row, PLACEMENT))
    if len(regions) > 1 and not placement.together:
        raise UserError(f"there are {len(regions)} regions: give yes as together, or a row for each")
    check_choices(placement, sampling)
    control = _path(folder, row["control_image"]) if "control_image" in row else None
    own = (image, *itertools.chain(*references, *masks), *([control] if control else []))
    if os.path.normpath(out) in map(os.path.normpath, own):
        raise UserError(f"out {row['out']} is one of the row's own pictures: choose another")
    return Job(
        line=line,
        image=image,
        regions=regions,
        references=references,
        reference_masks=masks,
        out=out,
        seed=seed,
        sampling=sampling,
        placement=placement,
        blending=replace(defaults.blending, **_values(row, BLENDING)),
        selection=selection,
        control_image=control,
    )


def _sampling(row: Row, defaults: Defaults) -> Sampling:
    """Raises UserError."""
    given, preset = _values(row, SAMPLING), row.get("preset", "").lower()
    if "keep_layout" in given:
        given.setdefault("keep", None)  # the flags' is another method's
    if preset:
        named = resolve_preset(preset, given.get("sampler"), given.get("steps"))
        return replace(defaults.sampling, **named._asdict(), **given)
    if defaults.preset and given.keys() & {"sampler", "steps"}:
        raise UserError(f"sampler or steps contradict --preset {defaults.preset}: leave one of them out")
    return replace(defaults.sampling, **given)


def _groups(cell: str, folder: Place) -> tuple[tuple[Place, ...], ...]:
    """The pictures for each region."""
    groups = [[name.strip() for name in part.split(ONE) if name.strip()] for part in cell.split(REGION)]
    return tuple(tuple(_path(folder, name) for name in group) for group in groups if group)


def _regions(row: Row, folder: Place) -> tuple[Region, ...]:
    """Raises UserError: columns with different numbers of regions, or as _region does."""
    parts = {name: [part.strip() for part in row[name].split(REGION)] for name in REGIONS if name in row}
    count = max(map(len, parts.values()), default=1)
    if others := [name for name, each in parts.items() if len(each) < count]:
        told = f"{others[0]} has {len(parts[others[0]])} of {count} regions"
        raise UserError(f"{told}: add {REGION} for those that are in another column")
    rows = [{name: each[i] for name, each in parts.items() if each[i]} for i in range(count)]
    return tuple(_region(each, folder) for each in rows)


def _region(row: Row, folder: Place) -> Region:
    """Raises UserError: none, several, or one that is not of its form."""
    given = [name for name in REGIONS if name in row and not (name == "alpha" and not _values(row, {name: flag})[name])]
    by_object = bool(given) and set(given) <= set(OBJECT)
    if len(given) != 1 and not by_object:
        found = f"both {' and '.join(given)}" if given else "none"
        raise UserError(f"the region is {found} of {', '.join(REGIONS)}: give one of them")
    if by_object:
        return Region(**{name: box(row[name]).box if name == "snap" else points(name, row[name]) for name in given})
    cell = row[given[0]]
    if given[0] == "mask":
        return Region(mask=str(_path(folder, cell)))
    if given[0] == "alpha":
        return Region(alpha=True)
    if given[0] == "box":
        return box(cell)
    return Region(polygon=points("polygon", cell))


def _path(folder: Place, cell: str) -> Place:
    """A picture that a cell names; a table from Windows has backslashes."""
    path = _joined(folder, cell)
    return path if "\\" not in cell or path.exists() else _joined(folder, cell.replace("\\", "/"))


def _joined(folder: Place, cell: str) -> Place:
    return place(cell) if is_url(cell) else folder / cell


def _values(row: Row, kinds: Kinds) -> dict[str, Any]:
    """The values of those of the columns that the row gives. Raises UserError: a cell is not of its kind."""
    found = {}
    for name, read in kinds.items():
        if name in row:
            try:
                found[name] = read(row[name])
            except (ValueError, OverflowError) as error:
                raise UserError(f"{name} {row[name]!r} is {WRONG.get(read, 'not a number')}: correct it") from error
    return found
