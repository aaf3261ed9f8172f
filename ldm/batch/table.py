"""A table of edits: its rows, and the account of what became of them.

jobs.csv has the columns image, mask or box (x0,y0,x1,y1), reference, out and, if you like, seed, scale, sampler and
steps; paths are relative to its folder. jobs.results.csv has a row for each of its rows: line, out, status, reason,
seconds."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ldm.editing.checks import check_request
from ldm.editing.metadata import check_format
from ldm.editing.regions import Region, parse_box
from ldm.files import staging
from ldm.util import UserError

NEEDED = ("image", "reference", "out")
COLUMNS = (*NEEDED, "mask", "box", "seed", "scale", "sampler", "steps")
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Job:
    """A row that can be tried. sampling: arguments of PaintByExample.sample, as pairs."""

    line: int
    image: Path
    region: Region
    reference: Path
    out: Path
    seed: int
    sampling: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a row. seconds: of its share of a batch, from the start of sampling to the written file."""

    line: int
    out: str
    status: str
    reason: str = ""
    seconds: float | str = ""


def read_jobs(
    path: Path, seed: int, sampling: Mapping[str, Any], preset: str | None = None
) -> tuple[list[Job], list[Outcome]]:
    """jobs.csv -> its jobs, and the rows that are none. seed, sampling: where a row says nothing; preset: the name of
    what sampling is, which a row does not change.

    Raises UserError: no such file, a column too few or unknown, no rows."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="too many values", strict=True)
            columns = [name or "" for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV in UTF-8 ({error}); export it as one") from error
    wrong = [name for name in columns if name not in COLUMNS]
    missing = [name for name in NEEDED if name not in columns]
    if wrong or missing or not rows:
        fault = f"has no column {missing[0]!r}" if missing else f"has a column {wrong[0]!r}" if wrong else "has no rows"
        raise UserError(f"{path}: {fault}; the first row names the columns, of {', '.join(COLUMNS)}")
    jobs: dict[Path, Job] = {}
    bad = []
    for line, row in rows:
        try:
            job = _job(line, row, path.parent, seed, dict(sampling), preset)
            if job.out in jobs:
                raise UserError(f"out {row['out']}: is also that of line {jobs[job.out].line}; name another")
            jobs[job.out] = job
        except UserError as error:
            bad.append(Outcome(line, str(row.get("out") or ""), FAILED, str(error)))
    return list(jobs.values()), bad


def _job(
    line: int, row: Mapping[str, str | None], folder: Path, seed: int, sampling: dict[str, Any], preset: str | None
) -> Job:
    given = {name: value.strip() for name, value in row.items() if isinstance(value, str) and value.strip()}
    if "too many values" in row:
        raise UserError("has more values than there are columns; quote what has commas in it, such as a box")
    if missing := [name for name in NEEDED if name not in given]:
        raise UserError(f"has no {missing[0]}; give one")
    if ("mask" in given) == ("box" in given):
        raise UserError("has a mask and a box, or neither; give one of them")
    for name, kind in (("seed", int), ("scale", float), ("steps", int)):
        if name in given:
            try:
                sampling[name] = kind(given[name])
            except ValueError as error:
                raise UserError(f"{name} {given[name]!r} is no number; correct it") from error
    seed = sampling.pop("seed", seed)
    if preset and ("sampler" in given or "steps" in given):
        raise UserError(f"has a sampler or steps, which contradict --preset {preset}; leave one of them out")
    sampling["sampler"] = given.get("sampler", sampling["sampler"])
    check_request(seeds=[seed], **sampling)
    check_format(given["out"])
    region = parse_box(given["box"]) if "box" in given else {"mask": str(folder / given["mask"])}
    paths = {name: folder / given[name] for name in NEEDED}
    return Job(line=line, region=region, seed=seed, sampling=tuple(sampling.items()), **paths)


class Account:
    """jobs.results.csv, kept up to date: every row of the table once, in the order in which they ended."""

    def __init__(self, path: Path):
        self.path = path
        self.names = [field.name for field in fields(Outcome)]

    def begin(self, outcomes: Iterable[Outcome]) -> None:
        """Writes it anew, with what is known before the work. Raises UserError."""
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
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); free some space") from error

    def before(self) -> dict[str, Outcome]:
        """What an earlier run says is done, by its file; nothing where there was none, or it cannot be read."""
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [Outcome(**row) for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError, csv.Error):
            return {}
        return {outcome.out: outcome for outcome in rows if outcome.status == DONE}


def still_to_do(jobs: Iterable[Job], account: Account) -> tuple[list[Job], list[Outcome]]:
    """The jobs whose file is not there, and what is to be said of the others."""
    before, todo, there = account.before(), [], []
    for job in jobs:
        if not job.out.exists():
            todo.append(job)
            continue
        known = before.get(os.fspath(job.out))
        seconds = known.seconds if known else ""
        there.append(Outcome(job.line, os.fspath(job.out), DONE, known.reason if known else "was there", seconds))
    return todo, there
