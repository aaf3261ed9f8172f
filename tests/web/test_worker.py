"""The worker of the page: progress, previews, results, and how an edit is stopped."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.conventions import image_to_tensor
from ldm.editing.options import Sampling
from ldm.models.diffusion.conditioning import encode_to_latent
from ldm.pipeline import PaintByExample
from ldm.util import UserError
from ldm.web.preview import fit_preview, preview_picture
from ldm.web.request import EditRequest
from ldm.web.worker import EditWorker, Progress
from tests.conftest import ROOT
from tests.web.conftest import FILES, MODEL, CountingPipeline


def request_of(steps: int, **options) -> EditRequest:
    return EditRequest(*(Image.open(path) for path in FILES), Sampling(steps=steps), **options)


def test_closing_the_stream_ends_the_sampling_after_the_current_step(worker):
    before = worker.edit.steps

    async def close_after_the_first_update():
        stream = worker.stream(request_of(500))
        update = await anext(stream)
        await stream.aclose()
        return update

    with worker.edit.paused_after_a_step():
        update = asyncio.run(close_after_the_first_update())
    assert isinstance(update, Progress) and update.step == 1 and max(update.preview.size) == 384
    worker.executor.submit(lambda: None).result(60)  # runs when the sampling has ended
    assert worker.edit.steps == before + 2  # the callback of the second step ended it


def test_closing_the_worker_ends_the_current_edit_and_starts_no_other(edit):
    worker = EditWorker(CountingPipeline(edit), MODEL, [Image.open(FILES[0])])

    async def close_after_the_first_update():
        stream = worker.stream(request_of(900))
        await anext(stream)
        worker.close()
        await stream.aclose()

    asyncio.run(close_after_the_first_update())
    assert 1 <= worker.edit.steps < 900
    with pytest.raises(RuntimeError, match="after shutdown"):
        asyncio.run(worker.first_result(request_of(2)))


def test_errors_of_an_edit_reach_who_asked_for_it(worker):
    request = replace(request_of(2), mask=Image.new("L", (600, 400)))
    with pytest.raises(UserError, match="has nothing to paint"):
        asyncio.run(worker.first_result(request))


def test_each_of_several_pictures_has_its_own_settings(edit, worker):
    async def last():
        *_, results = [update async for update in worker.stream(request)]
        return results

    request = request_of(2, seed=8, n_samples=3)
    results = asyncio.run(last())
    assert [result.settings["seed"] for result in results] == [8, 9, 10]
    single = edit(request.image, request.mask, request.reference, steps=2, seed=9, progress=False)
    difference = np.abs(np.asarray(single).astype(int) - np.asarray(results[1].picture))
    assert difference.max() <= 1  # batches round otherwise


def test_the_preview_is_near_what_the_decoder_makes():
    mini = PaintByExample.load(
        ROOT / "configs/mini/paint_by_example.yaml", ROOT / "pretrained_models/mini.safetensors", "cpu"
    )
    photos = [Image.open(path) for path in sorted((ROOT / "examples/mini/GT_3500").glob("*.png"))]
    weights = fit_preview(mini, photos[:6])
    pixels = torch.stack([image_to_tensor(photo.convert("RGB")) for photo in photos[6:8]])
    with torch.no_grad():
        latent = encode_to_latent(mini.model, pixels, torch.zeros(2, 4, 16, 16))
    seen = preview_picture(weights, latent, side=16)
    assert seen.size == (34, 16)
    wanted = photos[6].convert("RGB").resize((16, 16), Image.Resampling.BOX)
    assert np.abs(np.asarray(seen.crop((0, 0, 16, 16))).astype(int) - np.asarray(wanted)).mean() < 15
