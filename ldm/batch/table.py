"""A table of edits: its rows, and the account of each row's outcome.

jobs.csv has the columns image, mask or box (x0,y0,x1,y1), reference, out and, optionally, seed, scale, sampler and
steps; paths are relative to its folder. jobs.results.csv has a line for each of its rows: line, out, status, reason,
seconds."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ldm.editing.metadata import check_format
from ldm.editing.options import Sampling, check_seed
from ldm.editing.regions import Region, parse_box
from ldm.files import staging
from ldm.util import UserError

REQUIRED = ("image", "reference", "out")
COLUMNS = (*REQUIRED, "mask", "box", "seed", "scale", "sampler", "steps")
SURPLUS = "too many values"  # key of the values beyond the last column
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Job:
    """A row that can be tried."""

    line: int
    image: Path
    region: Region
    reference: Path
    out: Path
    seed: int
    sampling: Sampling


@dataclass(frozen=True)
class Outcome:
    """What became of a row. seconds: the row's share of its batch's time, from sampling to the written file."""

    line: int
    out: str
    status: str
    reason: str = ""
    seconds: float | str = ""


def read_jobs(path: Path, seed: int, sampling: Sampling, preset: str | None = None) -> tuple[list[Job], list[Outcome]]:
    """jobs.csv -> its jobs, and the outcomes of the rows that cannot be tried.

    seed, sampling: for rows that give none of their own; preset: the name of `sampling`, whose sampler and steps a row
    must not change. Raises UserError: a missing file, a missing or unknown column, no rows."""
    jobs: dict[Path, Job] = {}
    bad = []
    for line, row in _read_rows(path):
        try:
            job = _job(line, row, path.parent, seed, sampling, preset)
            if job.out in jobs:
                raise UserError(f"out {row['out']} is also the out of line {jobs[job.out].line}: choose another")
            jobs[job.out] = job
        except UserError as error:
            bad.append(Outcome(line, str(row.get("out") or ""), FAILED, str(error)))
    return list(jobs.values()), bad


def _read_rows(path: Path) -> list[tuple[int, Mapping[str, str | None]]]:
    """The numbers of the lines, and their values by column. Raises UserError."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey=SURPLUS, strict=True)
            columns = [name or "" for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}): export it as one") from error
    unknown = [name for name in columns if name not in COLUMNS]
    missing = [name for name in REQUIRED if name not in columns]
    if unknown or missing or not rows:
        fault = "has no rows"
        if unknown:
            fault = f"has an unknown column {unknown[0]!r}"
        if missing:
            fault = f"has no column {missing[0]!r}"
        raise UserError(f"{path} {fault}: its first row names the columns, from {', '.join(COLUMNS)}")
    return rows


def _job(
    line: int,
    row: Mapping[str, str | None],
    folder: Path,
    seed: int,
    sampling: Sampling,
    preset: str | None,
) -> Job:
    """Raises UserError for what is wrong with the row."""
    given = {name: value.strip() for name, value in row.items() if isinstance(value, str) and value.strip()}
    if SURPLUS in row:
        raise UserError("there are more values than columns: quote values that contain commas, such as a box")
    if missing := [name for name in REQUIRED if name not in given]:
        raise UserError(f"{missing[0]} is missing: give one")
    if ("mask" in given) == ("box" in given):
        raise UserError("there are both a mask and a box, or neither: give one of them")
    if preset and ("sampler" in given or "steps" in given):
        raise UserError(f"sampler or steps contradict --preset {preset}: leave one of them out")
    seed = int(_number(given, "seed", int, seed))
    check_seed(seed)
    check_format(given["out"])
    return Job(
        line=line,
        image=folder / given["image"],
        region=parse_box(given["box"]) if "box" in given else Region(mask=str(folder / given["mask"])),
        reference=folder / given["reference"],
        out=folder / given["out"],
        seed=seed,
        sampling=replace(
            sampling,
            scale=_number(given, "scale", float, sampling.scale),
            steps=_number(given, "steps", int, sampling.steps),
            sampler=given.get("sampler", sampling.sampler),
        ),
    )


def _number(given: Mapping[str, str], name: str, kind: type[int] | type[float], default: float) -> float:
    """Raises UserError if the value is not a number."""
    if name not in given:
        return default
    try:
        return kind(given[name])
    except ValueError as error:
        raise UserError(f"{name} {given[name]!r} is not a number: correct it") from error


class Account:
    """jobs.results.csv, kept up to date: every row of the table once, in the order in which they ended."""

    def __init__(self, path: Path):
        self.path = path
        self.names = [field.name for field in fields(Outcome)]

    def begin(self, outcomes: Iterable[Outcome]) -> None:
        """Start the file anew with the outcomes that are known before the work. Raises UserError."""
        with staging(self.path.parent) as folder, open(folder / self.path.name, "w", newline="") as file:
            writer = csv.DictWriter(file, self.names)
            writer.writeheader()
            writer.writerows(asdict(outcome) for outcome in outcomes)

    def add(self, outcome: Outcome) -> None:
        """Raises UserError."""
        try:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.names).writerow(asdict(outcome))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): free some space") from error

    def done_before(self) -> dict[str, Outcome]:
        """The rows that an earlier run finished, by their `out`; empty if there was none or its file is unreadable."""
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [Outcome(**row) for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError, csv.Error):
            return {}
        return {outcome.out: outcome for outcome in rows if outcome.status == DONE}


def split_finished(jobs: Iterable[Job], account: Account) -> tuple[list[Job], list[Outcome]]:
    """The jobs whose picture does not exist yet, and the outcomes of the others."""
    before, todo, finished = account.done_before(), [], []
    for job in jobs:
        out = os.fspath(job.out)
        if not job.out.exists():
            todo.append(job)
        elif out in before:
            finished.append(Outcome(job.line, out, DONE, before[out].reason, before[out].seconds))
        else:
            finished.append(Outcome(job.line, out, DONE, "was there"))
    return todo, finished
