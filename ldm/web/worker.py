"""Edits for a server: one at a time on one model, each with previews, each can be stopped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from PIL import Image

from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import Sampling
from ldm.editing.regions import Region
from ldm.models.diffusion.sampling import Step
from ldm.pipeline import PaintByExample
from ldm.web.preview import fit_preview, preview_picture
from ldm.web.request import EditRequest

PREVIEW_SECONDS = 0.4  # shortest time between two previews

Settings = dict[str, str | int | float]  # as a picture stores them, see ldm.editing.metadata


class Stopped(Exception):
    """Raised in the sampler's callback to end an edit that nobody waits for any more."""


@dataclass(frozen=True)
class ModelInfo:
    """What every result says about the model that made it. checkpoint, lora: names of files; lora_scale: how much of
    the adapter was added."""

    precision: str
    checkpoint: str
    lora: str | None = None
    lora_scale: float | None = None


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

    edit: the pipeline; model: goes into the settings of all results; photos: some, to fit the previews' colours."""

    def __init__(self, edit: PaintByExample, model: ModelInfo, photos: Sequence[Image.Image]):
        self.edit, self.model = edit, model
        self.closed = threading.Event()
        # one thread for everything: a CUDA graph belongs to the thread that recorded it
        self.executor = ThreadPoolExecutor(1, "edits")
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

        def raise_if_stopped() -> None:
            if stop.is_set() or self.closed.is_set():
                raise Stopped

        def on_step(step: Step) -> None:
            nonlocal last_preview
            raise_if_stopped()
            if self.edit.safety_checker:  # it checks only results, so nothing may be shown before
                return
            if (now := time.monotonic()) - last_preview >= PREVIEW_SECONDS:
                last_preview = now
                report(Progress(step.index + 1, step.total, preview_picture(self.preview_weights, step.pred_x0)))

        raise_if_stopped()
        marked = MarkedPhoto.mark(request.image, [Region(mask=request.mask)], [request.reference])
        pictures = self.edit.repaint(
            [marked] * request.n_samples,
            request.seeds,
            request.sampling,
            batch_size=request.n_samples,
            progress=False,
            callback=on_step,
        )
        settings = [self._settings(request.sampling, seed) for seed in request.seeds]
        return [EditResult(*both) for both in zip(pictures, settings, strict=True)]

    def _settings(self, sampling: Sampling, seed: int) -> Settings:
        asked = {name: getattr(sampling, name) for name in ("scale", "steps", "sampler", "strength")}
        model = {name: value for name, value in asdict(self.model).items() if value is not None}
        return {"seed": seed, **asked, **model}
