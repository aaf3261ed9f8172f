"""jobs.results.csv: what became of each row of a table of edits; and which rows are done already."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.batch.table import Job
from ldm.editing.metadata import KEY, read_settings
from ldm.files import staging
from ldm.storage import Place, Url, is_url
from ldm.util import UserError

DONE, FAILED = "done", "failed"
KEPT = "kept, "  # begins the reason of a picture that other settings would make otherwise
WRITE_EVERY = 10  # seconds between the states of an account in storage
AT_ONCE = 16  # pictures whose settings are looked at
HEAD_BYTES = 2**17  # at a picture's start, which contain its settings
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
    """jobs.results.csv, kept up to date: every row of the table once, in the order in which they end and, after
    `close`, in that of the table.

    One of several processes writes its part, jobs.results.parts/<rank>-of-<world>.csv, and the last to end writes the
    whole from all parts. In storage, where nothing can be appended to, a part is written anew every WRITE_EVERY
    seconds, and by `close`."""

    def __init__(self, path: Place, rank: int = 0, world: int = 1):
        self.path, self.rank, self.world = path, rank, world
        self.parts = path.with_suffix(".parts")
        self.own = path if world == 1 else self._part(rank)
        self.names = [field.name for field in fields(Outcome)]
        self.outcomes: list[Outcome] = []
        self.written_at = 0.0

    def _part(self, rank: int) -> Place:
        return self.parts / f"{rank}-of-{self.world}.csv"

    def begin(self, outcomes: Iterable[Outcome]) -> None:
        """Start the file anew with the outcomes that are known before the work. Raises UserError."""
        self.outcomes = list(outcomes)
        self._write(self.own, self.outcomes)
        self.written_at = time.monotonic()

    def _write(self, path: Place, outcomes: Iterable[Outcome]) -> None:
        with staging(path.parent) as folder, open(folder / path.name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.names)
            writer.writeheader()
            writer.writerows(asdict(outcome) for outcome in outcomes)

    def add(self, outcome: Outcome) -> None:
        """Raises UserError."""
        self.outcomes.append(outcome)
        if isinstance(self.own, Url):
            if time.monotonic() - self.written_at > WRITE_EVERY:
                self.begin(self.outcomes)
            return
        try:
            with open(self.own, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.names).writerow(asdict(outcome))
        except OSError as error:
            raise UserError(f"{self.own} cannot be written ({error.strerror}): free some space") from error

    def close(self, rows: int) -> bool:
        """Write what is not written yet -> whether jobs.results.csv accounts for all rows.

        rows: of the table; as long as the parts of other processes have fewer together, these are still at work, or
        were stopped and have to be run again. Raises UserError."""
        if isinstance(self.own, Url) or self.world == 1:
            self._write(self.own, sorted(self.outcomes, key=lambda outcome: outcome.line))
        if self.world == 1:
            self._remove_parts(lambda part: True)
            return True
        merged = {row.line: row for rank in range(self.world) for row in self._read(self._part(rank))}
        if len(merged) < rows:
            return False
        self._write(self.path, [merged[line] for line in sorted(merged)])
        self._remove_parts(lambda part: not part.stem.endswith(f"-of-{self.world}"))
        return True

    def _remove_parts(self, unwanted: Callable[[Place], bool]) -> None:
        """Those of this run stay: a process that is run again, or late, finds those of the others."""
        for part in filter(unwanted, self._files_of_parts()):
            part.unlink(missing_ok=True)
        if isinstance(self.parts, Path):
            with contextlib.suppress(OSError):  # there is none, or it is not empty
                self.parts.rmdir()

    def _files_of_parts(self) -> list[Place]:
        return self.parts.files() if isinstance(self.parts, Url) else sorted(self.parts.glob("*-of-*.csv"))

    def _read(self, path: Place) -> list[Outcome]:
        """Empty if there is no such file or it is unreadable."""
        try:
            rows = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline=""))
            return [replace(Outcome(**row), line=int(row["line"])) for row in rows]
        except (OSError, ValueError, TypeError, csv.Error):
            return []

    def done_before(self) -> dict[str, Outcome]:
        """The rows that earlier runs finished, by their `out`, from the whole account and all parts."""
        rows = [row for path in (self.path, *self._files_of_parts()) for row in self._read(path)]
        return {outcome.out: outcome for outcome in rows if outcome.status == DONE}


def split_finished(
    jobs: Iterable[Job], account: Account, settings_of_job: Callable[[Job], Settings]
) -> tuple[list[Job], list[Outcome]]:
    """The jobs whose picture does not exist yet, and the outcomes of the others; their reason begins with KEPT where
    the picture was made with other settings. settings_of_job: those that a job's picture would be written with."""
    before, todo, finished = account.done_before(), [], []
    jobs = list(jobs)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        differences = pool.map(lambda job: difference(job.out, settings_of_job(job)), jobs)
        for job, other in zip(jobs, differences, strict=True):
            out = os.fspath(job.out)
            if other is None:
                todo.append(job)
                continue
            last = before.get(out, Outcome(job.line, out, DONE, "was there"))
            last = replace(last, line=job.line, reason="" if last.reason.startswith(KEPT) else last.reason)
            finished.append(replace(last, reason=f"{KEPT}{other}") if other else last)
    return todo, finished


def difference(path: Place, settings: Settings) -> str | None:
    """What of its settings a picture was made with otherwise: "made with scale 5.0, not 9.0"; empty if nothing, None
    if there is no such picture.

    Of paths only the names are compared, since pictures and tables may have been moved."""
    source: Any = path
    if isinstance(path, Url):
        try:  # WebP has its settings at the end
            source = io.BytesIO(path.read_bytes(None if path.suffix.lower() == ".webp" else HEAD_BYTES))
        except FileNotFoundError:
            return None
    elif not path.exists():
        return None
    try:
        with Image.open(source) as picture:  # the settings of a PNG can be read without its pixels
            text = picture.info.get(KEY)
            before = json.loads(text) if text else read_settings(path if source is path else picture)
        before = _comparable(before)
    except (UserError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "though it contains no settings to compare"
    now = _comparable(settings)
    others = [f"{name} {before.get(name)}, not {now[name]}" for name in now if before.get(name) != now[name]]
    return f"made with {'; '.join(others)}" if others else ""


def _comparable(settings: Settings) -> dict[str, Any]:
    """As a picture would give them back; what is off is None."""

    if tried := settings.get("tried"):  # best of N: asked for was the first of its seeds
        settings = {**settings, "seed": tried[0]["seed"]}

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            value = Url(value).name if is_url(value) else value
            return value.replace("\\", "/").rpartition("/")[2].partition("#")[0]
        if isinstance(value, list):
            return [plain(each) for each in value]
        return {name: plain(each) for name, each in value.items()} if isinstance(value, dict) else value

    return {name: None if value is False else plain(value) for name, value in json.loads(json.dumps(settings)).items()}
