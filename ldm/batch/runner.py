"""Jobs to pictures: read ahead, in batches of one size and setting, on one device or several, written meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ldm.batch.table import DONE, FAILED, Job, Outcome
from ldm.conventions import tensor_to_image
from ldm.editing.inputs import Planned, stack
from ldm.editing.metadata import save_with_settings
from ldm.editing.regions import mask_of
from ldm.editing.watermark import check_watermark, embed
from ldm.fast.memory import keep_memory
from ldm.images import open_picture
from ldm.pipeline import PaintByExample
from ldm.util import UserError, batches_alike

Report = Callable[[Outcome], None]


@dataclass(frozen=True)
class How:
    """What all jobs have in common. loading: of PaintByExample.load; planning: of PaintByExample.plan; region: of
    ldm.editing.regions.mask_of; blending: of Placed.paste; sampling: of PaintByExample.sample, beside a job's own;
    settings: to be written into the pictures; watermark: see ldm.editing.watermark; batch_size: pictures made at
    once."""

    loading: Mapping[str, Any]
    planning: Mapping[str, Any] = field(default_factory=dict)
    region: Mapping[str, Any] = field(default_factory=dict)
    blending: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    watermark: bool = False
    batch_size: int = 4


def plan_of(edit: PaintByExample, job: Job, how: How) -> Planned:
    """Reads a job's pictures. Raises UserError."""
    image = open_picture(job.image, "image")
    reference = open_picture(job.reference, "reference")
    if how.watermark:
        check_watermark(image.size)
    return edit.plan(image, mask_of(job.region, image, **how.region), reference, **how.planning)


def write(job: Job, plan: Planned, painted: Tensor, how: How) -> None:
    """Pastes a job's window into its photo and saves that, whole or not at all. Raises UserError, OSError."""
    picture = plan.place.paste(tensor_to_image(painted), **how.blending)
    if how.watermark:
        picture = embed(picture)
    settings = {"image": os.fspath(job.image), "regions": [job.region], "references": [[os.fspath(job.reference)]]}
    job.out.parent.mkdir(parents=True, exist_ok=True)
    save_with_settings(picture, job.out, settings | how.settings | dict(job.sampling) | {"seed": job.seed})


def ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, most: int) -> Iterator[tuple[Any, Future]]:
    """(item, future of function(item)) in order, with at most so many begun that have not been asked for."""
    begun: deque[tuple[Any, Future]] = deque()
    for item in items:
        begun.append((item, pool.submit(function, item)))
        if len(begun) == most:
            yield begun.popleft()
    yield from begun


def run_jobs(edit: PaintByExample, jobs: Sequence[Job], how: How, report: Report) -> None:
    """Every job is reported once, done or failed; `report` is called from several threads."""
    last: list[Future] = []

    def fail(job: Job, error: Exception) -> None:
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        report(Outcome(job.line, os.fspath(job.out), FAILED, " ".join(words.split())))

    def finish(job: Job, plan: Planned, painted: Tensor, begin: float, count: int) -> None:
        try:
            write(job, plan, painted, how)
        except Exception as error:  # of one picture: it does not stop the others
            fail(job, error)
        else:
            report(Outcome(job.line, os.fspath(job.out), DONE, "", round((time.perf_counter() - begin) / count, 3)))

    def make(batch: list[tuple[Job, Planned]]) -> None:
        begin = time.perf_counter()
        inputs, seeds = stack([plan.inputs for _, plan in batch]), [job.seed for job, _ in batch]
        try:
            painted = edit.sample(inputs, seeds, progress=False, **dict(batch[0][0].sampling), **how.sampling).cpu()
        except Exception as error:
            if len(batch) == 1:
                fail(batch[0][0], error)
            else:  # whichever row it is of, it does not stop the others
                for row in batch:
                    make([row])
            return
        for future in last:  # no more than a batch of finished pictures waits to be written
            future.result()
        last[:] = [
            writer.submit(finish, *each, tensor, begin, len(batch)) for each, tensor in zip(batch, painted, strict=True)
        ]

    def planned(reader: ThreadPoolExecutor) -> Iterator[tuple[Job, Planned]]:
        for job, future in ahead(reader, lambda job: plan_of(edit, job, how), jobs, 2 * how.batch_size):
            try:
                plan = future.result()
            except Exception as error:  # of one row: it does not stop the others
                fail(job, error)
            else:
                yield job, plan

    def size_and_setting(row: tuple[Job, Planned]) -> Hashable:
        job, plan = row
        return edit.alike(plan.inputs, **dict(job.sampling)), job.sampling

    with ThreadPoolExecutor(2) as reader, ThreadPoolExecutor(2) as writer:
        for batch in batches_alike(planned(reader), how.batch_size, size_and_setting):
            make(batch)
        for future in last:
            future.result()


def run_on(devices: Sequence[str | None], jobs: Sequence[Job], how: How, report: Report) -> None:
    """Each device its share of the jobs, in a process of its own where there are several.

    Raises UserError: a model that cannot be loaded, a process that ended early."""
    if len(devices) == 1:
        lock = threading.Lock()

        def one_at_a_time(outcome: Outcome) -> None:
            with lock:
                report(outcome)

        run_jobs(PaintByExample.load(device=devices[0], **how.loading), jobs, how, one_at_a_time)
        return
    spawn = multiprocessing.get_context("spawn")
    outcomes = spawn.Queue()
    shares = [jobs[i :: len(devices)] for i in range(len(devices))]
    processes = [
        spawn.Process(target=_process, args=(device, share, how, outcomes), daemon=True)
        for device, share in zip(devices, shares, strict=True)
        if share
    ]
    for process in processes:
        process.start()
    try:
        left = len(jobs)
        while left:
            try:
                outcome = outcomes.get(timeout=0.5)
            except queue.Empty:
                if not any(process.is_alive() for process in processes) and outcomes.empty():
                    raise UserError(f"{left} rows were not tried, since a process ended; run it again") from None
                continue
            if isinstance(outcome, UserError):
                raise outcome
            report(outcome)
            left -= 1
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()  # after the pictures that it is writing


def _process(device: str | None, jobs: Sequence[Job], how: How, outcomes: multiprocessing.Queue) -> None:
    def stop(*_: Any) -> None:
        outcomes.cancel_join_thread()  # nobody reads any more
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent's part is to end the others
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # does not outlive it
    keep_memory()
    try:
        edit = PaintByExample.load(device=device, **how.loading)
    except UserError as error:
        outcomes.put(error)
    else:
        run_jobs(edit, jobs, how, outcomes.put)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is being written any more
