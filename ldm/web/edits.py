"""Edits for a server: one after the other on one model, each with previews on the way, each to be stopped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.conventions import image_to_tensor, tensor_to_image
from ldm.images import grid, upright_rgb
from ldm.models.diffusion.conditioning import encode_to_latent
from ldm.models.diffusion.sampling import Step
from ldm.pipeline import PaintByExample

PREVIEW_SECONDS = 0.4  # between previews, at least


class Stopped(Exception):
    """Raised in the sampler's callback: whoever asked for the edit does not want it any more."""


@dataclass(frozen=True)
class Job:
    """What one person asked for: the arguments of PaintByExample.__call__."""

    image: Image.Image
    mask: Image.Image  # 255 = paint
    reference: Image.Image
    scale: float = 5.0
    steps: int = 50
    sampler: str = "plms"
    strength: float = 1.0
    seed: int = 321
    n_samples: int = 1


@dataclass(frozen=True)
class Progress:
    step: int  # of total, done
    total: int
    preview: Image.Image


@dataclass(frozen=True)
class Result:
    picture: Image.Image
    settings: dict[str, Any]


@torch.no_grad()
def fit_preview(edit: PaintByExample, photos: Sequence[Image.Image]) -> Tensor:
    """(5,3): the linear map from a latent's 4 channels and a 1 to RGB in [-1,1] that comes nearest to these photos
    (least squares): for any autoencoder what its decoder does, but for detail, at no cost."""
    latents, colours = [], []
    for photo in photos:
        picture = upright_rgb(photo)
        pixels = image_to_tensor(picture.resize(edit.size_for(picture)[::-1]))[None].to(edit.device)
        shape = [side // edit.model.first_stage_model.factor for side in pixels.shape[-2:]]
        z = encode_to_latent(edit.networks, pixels, torch.zeros(1, edit.model.channels, *shape, device=edit.device))
        latents.append(F.pad(z[0].flatten(1), (0, 0, 0, 1), value=1.0).T)
        colours.append(F.interpolate(pixels, z.shape[-2:], mode="area")[0].flatten(1).T)
    return torch.linalg.lstsq(torch.cat(latents).float().cpu(), torch.cat(colours).float().cpu()).solution


def preview(weights: Tensor, latents: Tensor, side: int = 384) -> Image.Image:
    """pred_x0 (B,4,h,w) -> B small pictures beside each other, in rows of two; side: of each, pixels."""
    z = F.pad(latents.float().cpu(), (0, 0, 0, 0, 0, 1), value=1.0)
    pictures = [tensor_to_image(torch.einsum("chw,cr->rhw", one, weights)) for one in z]
    scale = side / max(pictures[0].size)
    size = tuple(round(scale * length) for length in pictures[0].size)
    return grid([picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures], rows=-(-len(pictures) // 2))


class Edits:
    """edit: the model, which does one edit at a time; about: what stands in the settings of all results, such as the
    checkpoint's name; photos: a few, on which the preview's colours are fitted."""

    def __init__(self, edit: PaintByExample, about: dict[str, Any], photos: Sequence[Image.Image]):
        self.edit, self.about = edit, about
        self.closed = threading.Event()
        self.worker = ThreadPoolExecutor(1, "edits")  # one for all: a CUDA graph is of the thread that recorded it
        self.weights = self.worker.submit(fit_preview, edit, photos).result()

    async def stream(self, job: Job) -> AsyncIterator[Progress | list[Result]]:
        """Progress while it samples, at last the results, one per seed. Closing or cancelling the stream ends the
        sampling after the step under way. Raises UserError as PaintByExample does."""
        loop, news, stop = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def tell(item: Progress | list[Result] | Exception) -> None:
            loop.call_soon_threadsafe(news.put_nowait, item)

        def work() -> None:
            try:
                tell(self._make(job, tell, stop))
            except Stopped:
                pass
            except Exception as error:
                tell(error)

        self.worker.submit(work)
        try:
            while True:
                item = await news.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if not isinstance(item, Progress):
                    return
        finally:
            stop.set()

    async def one(self, job: Job) -> Result:
        """The first result of a stream, without what comes before."""
        async for news in self.stream(job):
            if not isinstance(news, Progress):
                return news[0]
        raise AssertionError("a stream ends with results")

    def close(self) -> None:
        """Ends the edit under way, after its step, and begins no other: what a process does before it ends."""
        self.closed.set()
        self.worker.shutdown()  # a thread that is torn from PyTorch's code aborts the process

    def _make(self, job: Job, tell: Callable[[Progress], None], stop: threading.Event) -> list[Result]:
        told = 0.0  # time of the last preview

        def on_step(step: Step) -> None:
            nonlocal told
            if stop.is_set() or self.closed.is_set():
                raise Stopped
            if self.edit.safety_checker:  # which looks at results alone: nothing is shown before
                return
            if (now := time.monotonic()) - told >= PREVIEW_SECONDS:
                told = now
                tell(Progress(step.index + 1, step.total, preview(self.weights, step.pred_x0)))

        if stop.is_set() or self.closed.is_set():
            raise Stopped
        pictures = self.edit(
            job.image,
            job.mask,
            job.reference,
            job.scale,
            job.steps,
            job.seed,
            job.n_samples,
            job.sampler,
            batch_size=job.n_samples,
            progress=False,
            callback=on_step,
            strength=job.strength,
        )
        pictures = [pictures] if isinstance(pictures, Image.Image) else pictures
        asked = {name: getattr(job, name) for name in ("scale", "steps", "sampler", "strength")} | self.about
        return [Result(picture, {"seed": job.seed + i, **asked}) for i, picture in enumerate(pictures)]
