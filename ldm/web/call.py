"""The call /edit, for programs.

Without `from __future__ import annotations`: Gradio reads an endpoint's annotations as they are, not as strings."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import gradio as gr
from gradio_client.data_classes import FileData

from ldm.web.errors import report_errors
from ldm.web.request import parse_request
from ldm.web.uploads import open_upload, save_result, upload_path
from ldm.web.worker import EditWorker


def edit_endpoint(worker: EditWorker, block: gr.blocks.Block) -> Callable[..., Coroutine[Any, Any, tuple]]:
    """The function behind the call. block: the results are kept in its cache."""

    async def edit(
        image: FileData,
        mask: FileData,
        reference: FileData,
        scale: float = 5.0,
        steps: int = 50,
        sampler: str = "plms",
        strength: float = 1.0,
        seed: int | None = None,
        keep_layout: str | None = None,
        keep: float | None = None,
        mask_from_difference: bool = False,
        best: int = 1,
        best_preset: str = "draft",
        detail_scale: float | None = None,
    ) -> tuple[FileData, dict]:
        """Repaint the mask's white region of the image with the reference's object.

        reference: a picture, or a token that scripts/learn_object.py wrote. scale: guidance, 0 to 100. steps: 1 to 999.
        sampler: plms, ddim, dpm++ or unipc. strength: 1 starts from noise, below 1 keeps the region's layout. seed:
        null for a random one. keep_layout: ddpm, ddim or pnp start from noise that leads back to the image; keep: how
        much of it stays, 0 to 1. mask_from_difference: paint only what the reference changes inside the region. best:
        seeds that are tried by best_preset, draft or fast, of which the best is painted. detail_scale: how much of the
        model's detail path is added, 0 to 1; null as on the page at first. Returns the result, a PNG of the image's
        size, and the settings that made it."""
        with report_errors():
            files = {"image": image, "mask": mask, "reference": reference}
            paths = {name: upload_path(file, name) for name, file in files.items()}
            pictures = [await asyncio.to_thread(open_upload, path, name) for name, path in paths.items()]
            numbers = {"scale": scale, "steps": steps, "sampler": sampler, "strength": strength, "seed": seed}
            layout = {"keep_layout": keep_layout, "keep": keep, "mask_from_difference": mask_from_difference}
            how = {**layout, "best": best, "best_preset": best_preset, "detail_scale": detail_scale}
            request = parse_request(*pictures, **numbers, **how)
            result = await worker.first_result(request)
            path = await asyncio.to_thread(save_result, result, paths["image"], block)
            return gr.FileData(path=path).model_dump(), result.settings

    return edit
