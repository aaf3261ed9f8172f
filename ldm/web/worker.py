"""Edits for a server: one at a time on one model, each with previews, each can be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from PIL import Image

from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import Blending, Placement, Sampling, settings_of
from ldm.editing.regions import Region
from ldm.models.diffusion.sampling import Step
from ldm.pipeline import PaintByExample
from ldm.web.preview import fit_preview, preview_picture
from ldm.web.request import EditRequest

PREVIEW_SECONDS = 0.4  # shortest time between two previews

Settings = dict[str, Any]  # as a picture stores them, see ldm.editing.metadata


class Stopped(Exception):
    """Raised in the sampler's callback to end an edit that nobody waits for any more."""


@dataclass(frozen=True)
class ModelInfo:
    """What every result says about the model that made it. checkpoint, lora, detail: names of files; lora_scale: how
    much of the adapter, or of each, was added."""

    precision: str
    checkpoint: str
    lora: str | list[str] | None = None
    lora_scale: float | list[float] | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Progress:
    """step: how many of the total are done."""

    step: int
    total: int
    preview: Image.Image


@dataclass(frozen=True)
class EditResult:
    """settings: how the picture was made; also stored inside its PNG."""

    picture: Image.Image
    settings: Settings


Report = Callable[[Progress], None]


class EditWorker:
    """Makes edits on one thread.

    edit: the pipeline; model: goes into the settings of all results; photos: some, to fit the previews' colours;
    detail_scale: how much of the pipeline's detail path, if it has one, is added to edits that do not say."""

    def __init__(
        self, edit: PaintByExample, model: ModelInfo, photos: Sequence[Image.Image], detail_scale: float = 1.0
    ):
        self.edit, self.model = edit, model
        self.detail_scale = None if edit.detail is None else detail_scale
        self.closed = threading.Event()
        # one thread for everything: a CUDA graph belongs to the thread that recorded it
        self.executor = ThreadPoolExecutor(1, "edits")
        self.step_seconds: float | None = None  # how long a sampling step of one picture takes; None: not known yet
        self.photos = photos
        self.preview_weights = self.executor.submit(fit_preview, edit, photos).result()

    async def stream(self, request: EditRequest) -> AsyncIterator[Progress | list[EditResult]]:
        """Yields progress while the edit samples, and last the results, one per seed. Closing or cancelling the stream
        ends the sampling after the current step. Raises UserError as PaintByExample.repaint does."""
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[Progress | list[EditResult] | Exception] = asyncio.Queue()
        stop = threading.Event()

        def put(update: Progress | list[EditResult] | Exception) -> None:
            loop.call_soon_threadsafe(updates.put_nowait, update)

        def work() -> None:
            try:
                put(self._run(request, put, stop))
            except Stopped:
                pass
            except Exception as error:
                put(error)

        self.executor.submit(work)
        try:
            while True:
                update = await updates.get()
                if isinstance(update, Exception):
                    raise update
                yield update
                if not isinstance(update, Progress):
                    return
        finally:
            stop.set()

    def measure(self) -> None:
        """Learns step_seconds from two steps, behind what the thread is doing."""
        stop = threading.Event()
        photo = self.photos[0]
        whole = Image.new("L", photo.size, 255)
        request = EditRequest(photo, whole, photo, Sampling(sampler="ddim", steps=2))

        def work() -> None:
            with contextlib.suppress(Stopped):
                self._run(request, lambda progress: stop.set(), stop)

        self.executor.submit(work)

    async def first_result(self, request: EditRequest) -> EditResult:
        """The first result of a stream, without the progress before it."""
        async for update in self.stream(request):
            if not isinstance(update, Progress):
                return update[0]
        raise AssertionError("a stream ends with results")

    def close(self) -> None:
        """Ends the current edit after its step, and starts no other. Call it before the process ends: it would abort if
        the thread were still in PyTorch's code."""
        self.closed.set()
        self.executor.shutdown()

    def _run(self, request: EditRequest, report: Report, stop: threading.Event) -> list[EditResult]:
        last_preview = 0.0  # seconds, of time.monotonic
        step_ends: list[float] = []

        def raise_if_stopped() -> None:
            if stop.is_set() or self.closed.is_set():
                raise Stopped

        def on_step(step: Step) -> None:
            nonlocal last_preview
            step_ends.append(time.monotonic())
            if len(step_ends) > 1 and not request.sampling.keep_layout:  # whose steps are of several kinds
                took = statistics.median(b - a for a, b in pairwise(step_ends))
                self.step_seconds = took / request.n_samples
            raise_if_stopped()
            if self.edit.safety_checker:  # it checks only results, so nothing may be shown before
                return
            if (now := time.monotonic()) - last_preview >= PREVIEW_SECONDS:
                last_preview = now
                report(Progress(step.index + 1, step.total, preview_picture(self.preview_weights, step.pred_x0)))

        raise_if_stopped()
        if request.sampling.detail_scale is None:
            request = replace(request, sampling=replace(request.sampling, detail_scale=self.detail_scale))
        masks, references = zip((request.mask, request.reference), *request.others, strict=True)
        regions = [Region(mask=mask) for mask in masks]
        marked = MarkedPhoto.mark(request.image, regions, references, request.placement)
        how = (request.sampling, request.placement, request.blending)
        watch: dict[str, Any] = {"batch_size": request.n_samples, "progress": False}
        choices = [
            self.edit.choose_seed(marked, seed, request.selection, *how, **watch, callback=lambda _: raise_if_stopped())
            for seed in request.seeds
        ]
        seeds = [choice.seed for choice in choices]
        pictures = self.edit.repaint([marked] * len(seeds), seeds, *how, **watch, callback=on_step)
        settings = [choice.settings | self._settings(request) for choice in choices]
        return [EditResult(*both) for both in zip(pictures, settings, strict=True)]

    def _settings(self, request: EditRequest) -> Settings:
        """Those that the page always asks for, and of the others what differs from the default. A detail path of which
        nothing was added is left out."""
        asked = {name: getattr(request.sampling, name) for name in ("scale", "steps", "sampler", "strength")}
        usual = settings_of(Sampling(), Placement(), Blending())
        given = settings_of(request.sampling, request.placement, request.blending)
        others = {name: value for name, value in given.items() if name not in asked and value != usual[name]}
        model = {name: value for name, value in asdict(self.model).items() if value is not None}
        unused = ("detail", "detail_scale") if request.sampling.detail_scale == 0 else ()
        return {name: value for name, value in {**asked, **others, **model}.items() if name not in unused}
