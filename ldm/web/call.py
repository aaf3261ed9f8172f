"""What a request says -> a job; what became of it -> a file; and the call, /edit.

No `from __future__ import annotations` here: Gradio reads the annotations of an endpoint as they stand."""

import asyncio
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.data_classes import FileData
from gradio_client.utils import is_file_obj_with_meta

from ldm.editing.metadata import save_with_settings
from ldm.util import UserError
from ldm.web.edits import Edits, Job, Result
from ldm.web.uploads import open_upload


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong in this block becomes one sentence; what is no user's fault also goes to the log."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        words = "something went wrong that is not your fault; the server's log says what"
        raise gr.Error(words, duration=None, print_exception=False) from error


def number(value: Any, name: str, kind: type[float] | type[int], example: str) -> Any:
    """Raises UserError: not a number of this kind."""
    try:
        if kind is int and not isinstance(value, str) and value != int(value):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        what = "whole number" if kind is int else "number"
        raise UserError(f"{name} {value!r:.40} is no {what}; use for instance {example}") from error


def job_of(pictures, scale, steps, sampler, strength, seed, n_samples=1) -> Job:
    """pictures: image, mask, reference; seed None or empty: one by chance. Raises UserError: no numbers."""
    return Job(
        *pictures,
        number(scale, "scale", float, "5"),
        number(steps, "steps", int, "50"),
        str(sampler),
        number(strength, "strength", float, "1"),
        random.randrange(2**32) if seed in (None, "") else number(seed, "seed", int, "321"),
        number(n_samples, "the number of pictures", int, "1"),
    )


def path_of(file: Any, what: str) -> str | None:
    """Of an upload, which Gradio has seen to be one. Raises UserError: anything else."""
    if file is not None and not is_file_obj_with_meta(file):
        raise UserError(f"the {what} did not come as a file; send it with gradio_client's handle_file")
    return file and file["path"]


def keep(result: Result, photo: str, block: gr.blocks.Block) -> str:
    """Writes a result as PNG, with its settings, into the block's cache, named after the photo -> its path there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{Path(photo).stem}_{result.settings['seed']}.png"
        save_with_settings(result.picture, path, result.settings)
        return block.move_resource_to_block_cache(path)


def endpoint(edits: Edits, block: gr.blocks.Block) -> Callable:
    """The function of the call; block: in whose cache its pictures are kept."""

    async def edit(
        image: FileData,
        mask: FileData,
        reference: FileData,
        scale: float = 5.0,
        steps: int = 50,
        sampler: str = "plms",
        strength: float = 1.0,
        seed: int | None = None,
    ) -> tuple[FileData, dict]:
        """Repaint the mask's white region of the image with the reference's object.

        scale: guidance, 0 to 100. steps: 1 to 999. sampler: plms, ddim, dpm++ or unipc. strength: 1 from noise, less
        keeps the region's layout. seed: null for one by chance. -> the picture, a PNG of the image's size, and the
        settings that it was made with."""
        with told():
            files = {"image": image, "mask": mask, "reference": reference}
            paths = {what: path_of(file, what) for what, file in files.items()}
            pictures = [await asyncio.to_thread(open_upload, path, what) for what, path in paths.items()]
            job = job_of(pictures, scale, steps, sampler, strength, seed)
            result = await edits.one(job)
            path = await asyncio.to_thread(keep, result, paths["image"], block)
            return gr.FileData(path=path).model_dump(), result.settings

    return edit
