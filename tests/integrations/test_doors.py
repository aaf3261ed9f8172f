"""One edit through every door, with the miniature model: the same pixels. For diffusers, which has no form for its
residual CLIP, test_diffusers_pipeline.py makes the comparison with the toy model."""

import base64
import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.pipeline import PaintByExample
from tests.integrations.test_comfyui import HOW, MINI, case, host, load_image, load_mask, pack, saved  # noqa: F401
from tests.web.conftest import free_port

pytestmark = pytest.mark.integration
FILES = {"image": case("GT"), "mask": case("mask"), "reference": case("ref")}
STEPS, SEED = 20, 321
MODEL = ["--config", MINI_CONFIG, "--ckpt", MINI_CKPT, "--device", "cpu"]


@pytest.fixture(scope="module")
def pipeline():
    return PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu")


@pytest.fixture(scope="module")
def expected(pipeline) -> np.ndarray:
    """The edit in Python, which changes the region."""
    pixels = np.asarray(pipeline(**FILES, steps=STEPS, seed=SEED, progress=False))
    changed = (pixels != np.asarray(Image.open(FILES["image"]).convert("RGB"))).any(axis=2)
    inside = np.asarray(Image.open(FILES["mask"]).convert("L")) > 127
    assert changed[inside].mean() > 0.9 and not changed[~inside].any()
    return pixels


def test_the_command(expected, script, tmp_path):
    files = ["--image_path", FILES["image"], "--mask_path", FILES["mask"], "--reference_path", FILES["reference"]]
    code, _, err = script("inference", *files, *MODEL, "--ddim_steps", STEPS, "--seed", SEED, "--outdir", tmp_path)
    assert code == 0, err
    (path,) = tmp_path.rglob(f"{FILES['image'].stem}_{SEED}.png")
    assert np.array_equal(np.asarray(Image.open(path)), expected)


def test_the_table(expected, script, tmp_path):
    with open(tmp_path / "jobs.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*FILES, "seed", "steps", "out"])
        rows.writerow([*FILES.values(), SEED, STEPS, tmp_path / "edit.png"])
    code, _, err = script("edit_batch", tmp_path / "jobs.csv", *MODEL)
    assert code == 0, err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "edit.png")), expected)


@pytest.fixture(scope="module")
def url(pipeline):
    """The page's server in this process."""
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[web]'")
    from ldm.web.examples import Example
    from ldm.web.iopaint import IOPaint
    from ldm.web.page import build, serve
    from ldm.web.worker import EditWorker, ModelInfo

    worker = EditWorker(pipeline, ModelInfo(precision="full", checkpoint=MINI_CKPT.name), [Image.open(FILES["image"])])
    page = build(worker, [Example(*FILES.values())])
    yield serve(page, "127.0.0.1", free_port(), IOPaint(worker).routes())
    page.close()
    worker.close()


def test_the_pages_call(expected, url, tmp_path):
    client = pytest.importorskip("gradio_client")
    caller = client.Client(url, verbose=False, analytics_enabled=False, download_files=tmp_path)
    files = {name: client.handle_file(str(path)) for name, path in FILES.items()}
    path, _ = caller.predict(**files, steps=STEPS, seed=SEED, api_name="/edit")
    assert np.array_equal(np.asarray(Image.open(path)), expected)


def test_iopaints_request(expected, url):
    httpx = pytest.importorskip("httpx")
    names = {"image": "image", "mask": "mask", "reference": "paint_by_example_example_image"}
    fields = {names[name]: base64.b64encode(path.read_bytes()).decode() for name, path in FILES.items()}
    fields |= {"sd_steps": STEPS, "sd_seed": SEED, "sd_guidance_scale": 5.0}
    reply = httpx.post(f"{url}api/v1/inpaint", json=fields, timeout=120)
    assert reply.status_code == 200, reply.text
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), expected)


def test_comfyuis_nodes(expected, pack):  # noqa: F811
    def node(name: str, **values):
        kind = pack.NODE_CLASS_MAPPINGS[name]
        with torch.inference_mode():
            return getattr(kind(), kind.FUNCTION)(**values)

    (model,) = node("PaintByExampleLoadModel", **MINI)
    pictures = {"image": load_image(FILES["image"])[0], "example": load_image(FILES["reference"])[0]}
    how = {**HOW, "seed": SEED, "steps": STEPS}
    image, *_ = node("PaintByExampleEdit", model=model, mask=load_mask(FILES["mask"]), **pictures, **how)
    assert np.array_equal(saved(image)[0], expected)
