"""Jobs to pictures: read ahead, sampled in batches, written meanwhile, on one device or several."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from PIL import Image

from ldm.batch.account import DONE, FAILED, Outcome
from ldm.batch.table import Job
from ldm.conventions import tensor_to_image
from ldm.editing.best import Choice
from ldm.editing.details import plans_detail
from ldm.editing.inputs import PlannedEdit, SamplingTask
from ldm.editing.marked import MarkedPhoto
from ldm.editing.metadata import save_with_settings
from ldm.editing.options import Blending, Loading, settings_of
from ldm.editing.painter import SampledBatch
from ldm.editing.references import read_references
from ldm.editing.watermark import check_watermark, embed
from ldm.fast import memory
from ldm.images import open_picture
from ldm.pipeline import PaintByExample
from ldm.util import UserError

Report = Callable[[Outcome], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchOptions:
    """What all jobs of a table share. settings: further entries of the settings inside the written pictures;
    batch_size: largest number of pictures to make at once."""

    loading: Loading
    settings: Mapping[str, Any] = field(default_factory=dict)
    watermark: bool = False
    batch_size: int = 4


@dataclass(frozen=True)
class PlannedJob:
    """blending: the job's own, which depends on its photo too; choice: the seed that it is painted with."""

    job: Job
    marked: MarkedPhoto
    plan: PlannedEdit
    blending: Blending
    choice: Choice

    @property
    def task(self) -> SamplingTask:
        return SamplingTask(self.plan.inputs, self.choice.seed, self.job.sampling)


def plan_job(edit: PaintByExample, job: Job, options: BatchOptions) -> PlannedJob:
    """Read a job's pictures. Raises UserError."""
    image = open_picture(job.image, "image")
    references = read_references(len(job.regions), job.references, job.reference_masks)
    if options.watermark:
        check_watermark(image.size)
    control = None if job.control_image is None else open_picture(job.control_image, "control image")
    marked = MarkedPhoto.mark(image, job.regions, references, job.placement, control)
    details = plans_detail(edit.detail, job.sampling, job.placement)
    if job.placement.together:
        plan = edit.plan_together(marked.photo, marked.masks, marked.references, job.placement, marked.control)
    else:
        plan = edit.plan(marked.photo, marked.masks[0], marked.references[0], job.placement, marked.control, details)
    return PlannedJob(job, marked, plan, marked.blending(job.blending), Choice(job.seed, job.selection))


def choose_seed(edit: PaintByExample, planned: PlannedJob, options: BatchOptions) -> PlannedJob:
    """The job with the best of its seeds. Raises UserError."""
    job = planned.job
    choice = edit.choose_seed(
        *(planned.marked, job.seed, job.selection, job.sampling, job.placement, job.blending),
        batch_size=options.batch_size,
        progress=False,
    )
    return replace(planned, choice=choice)


def settings_of_job(job: Job, options: BatchOptions) -> dict[str, Any]:
    """What is written into a job's picture."""
    references, masks = (
        [[os.fspath(path) for path in group] for group in groups] for groups in (job.references, job.reference_masks)
    )
    return {
        "image": os.fspath(job.image),
        "regions": [region.settings for region in job.regions],
        "references": references,
        "reference_masks": masks or None,
        "control_image": None if job.control_image is None else os.fspath(job.control_image),
        **settings_of(job.placement, job.blending),
        **options.settings,
        **settings_of(job.sampling),
        **job.selection.settings,
        "seed": job.seed,
    }


def write(planned: PlannedJob, painted: Image.Image, options: BatchOptions) -> None:
    """Paste a job's painted window into its photo and save that, atomically. Raises UserError, OSError."""
    job = planned.job
    picture = planned.plan.place.paste(painted, planned.blending)
    if options.watermark:
        picture = embed(picture)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    save_with_settings(picture, job.out, settings_of_job(job, options) | planned.choice.settings)


def submit_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """(item, future of function(item)) in order; at most `limit` of them are submitted before they are needed."""
    submitted: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        submitted.append((item, pool.submit(function, item)))
        if len(submitted) == limit:
            yield submitted.popleft()
    yield from submitted


def run_jobs(edit: PaintByExample, jobs: Sequence[Job], options: BatchOptions, report: Report) -> None:
    """Every job is reported once, done or failed; `report` is called from several threads."""

    def fail(job: Job, error: Exception) -> None:
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        report(Outcome(job.line, os.fspath(job.out), FAILED, " ".join(words.split())))

    def planned_early(job: Job) -> PlannedJob | None:
        """None: its plan needs the networks, which one thread uses at a time."""
        return None if job.placement.mask_from_difference else plan_job(edit, job, options)

    def planned_jobs(reader: ThreadPoolExecutor) -> Iterator[PlannedJob]:
        for job, future in submit_ahead(reader, planned_early, jobs, 2 * options.batch_size):
            try:
                planned = choose_seed(edit, future.result() or plan_job(edit, job, options), options)
            except Exception as error:  # one bad row does not stop the others
                fail(job, error)
            else:
                yield planned

    def finish(batch: SampledBatch[PlannedJob], i: int, begin: float) -> None:
        planned = batch.items[i]
        try:
            write(planned, tensor_to_image(batch.pictures[i]), options)
        except Exception as error:  # one picture that cannot be written does not stop the others
            fail(planned.job, error)
        else:
            seconds = round((time.perf_counter() - begin) / len(batch.items), 3)
            report(Outcome(planned.job.line, os.fspath(planned.job.out), DONE, "", seconds))

    being_written: list[Future[None]] = []
    with ThreadPoolExecutor(2) as reader, ThreadPoolExecutor(2) as writer:
        for batch in edit.sample_in_batches(
            planned_jobs(reader),
            lambda planned: planned.task,
            options.batch_size,
            on_failure=lambda planned, error: fail(planned.job, error),
        ):
            for future in being_written:  # at most one batch of finished pictures waits to be written
                future.result()
            begin = time.perf_counter() - batch.seconds
            being_written = [writer.submit(finish, batch, i, begin) for i in range(len(batch.items))]
        for future in being_written:
            future.result()


def run_on_devices(devices: Sequence[str | None], jobs: Sequence[Job], options: BatchOptions, report: Report) -> None:
    """Each device takes its share of the jobs, in a process of its own if there are several devices.

    Raises UserError: a model that cannot be loaded, a process that ended early."""
    if len(devices) == 1:
        lock = threading.Lock()

        def report_one_at_a_time(outcome: Outcome) -> None:
            with lock:
                report(outcome)

        edit = PaintByExample.from_loading(replace(options.loading, device=devices[0]))
        run_jobs(edit, jobs, options, report_one_at_a_time)
        return
    spawn = multiprocessing.get_context("spawn")
    outcomes = spawn.Queue()
    shares = [jobs[i :: len(devices)] for i in range(len(devices))]
    processes = [
        spawn.Process(target=_run_share, args=(device, share, options, outcomes), daemon=True)
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
                    raise UserError(f"a process ended early and {left} rows were not tried: run it again") from None
                continue
            if isinstance(outcome, UserError):
                raise outcome
            report(outcome)
            left -= 1
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()  # it finishes the pictures that it is writing


def _run_share(device: str | None, jobs: Sequence[Job], options: BatchOptions, outcomes: multiprocessing.Queue) -> None:
    """What a device's process runs."""

    def stop(*_: Any) -> None:
        outcomes.cancel_join_thread()  # nobody reads them any more
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent ends the others
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # does not outlive its parent
    memory.keep_memory()
    try:
        edit = PaintByExample.from_loading(replace(options.loading, device=device))
    except UserError as error:
        outcomes.put(error)
    else:
        run_jobs(edit, jobs, options, outcomes.put)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is being written any more
