"""jobs.results.csv: what became of each row of a table of edits; and which rows are done already."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.batch.table import Job
from ldm.editing.metadata import KEY, read_settings
from ldm.files import staging
from ldm.util import UserError

DONE, FAILED = "done", "failed"
KEPT = "kept, "  # begins the reason of a picture that other settings would make otherwise
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a row. seconds: the row's share of its batch's time, from sampling to the written file."""

    line: int
    out: str
    status: str
    reason: str = ""
    seconds: float | str = ""


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


def split_finished(
    jobs: Iterable[Job], account: Account, settings_of_job: Callable[[Job], Settings]
) -> tuple[list[Job], list[Outcome]]:
    """The jobs whose picture does not exist yet, and the outcomes of the others; their reason begins with KEPT where
    the picture was made with other settings. settings_of_job: those that a job's picture would be written with."""
    before, todo, finished = account.done_before(), [], []
    for job in jobs:
        out = os.fspath(job.out)
        if not job.out.exists():
            todo.append(job)
            continue
        last = before.get(out, Outcome(job.line, out, DONE, "was there"))
        last = replace(last, line=job.line, reason="" if last.reason.startswith(KEPT) else last.reason)
        other = difference(job.out, settings_of_job(job))
        finished.append(replace(last, reason=f"{KEPT}{other}") if other else last)
    return todo, finished


def difference(path: Path, settings: Settings) -> str:
    """What of its settings a picture was made with otherwise: "made with scale 5.0, not 9.0"; empty if nothing.

    Of paths only the names are compared, since pictures and tables may have been moved."""
    try:
        with Image.open(path) as picture:  # the settings of a PNG can be read without its pixels
            text = picture.info.get(KEY)
        before = _comparable(json.loads(text) if text else read_settings(path))
    except (UserError, OSError, ValueError, TypeError, AttributeError):
        return "though it contains no settings to compare"
    now = _comparable(settings)
    others = [f"{name} {before.get(name)}, not {now[name]}" for name in now if before.get(name) != now[name]]
    return f"made with {'; '.join(others)}" if others else ""


def _comparable(settings: Settings) -> dict[str, Any]:
    """As a picture would give them back; what is off is None."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("\\", "/").rpartition("/")[2].partition("#")[0]
        if isinstance(value, list):
            return [plain(each) for each in value]
        return {name: plain(each) for name, each in value.items()} if isinstance(value, dict) else value

    return {name: None if value is False else plain(value) for name, value in json.loads(json.dumps(settings)).items()}
