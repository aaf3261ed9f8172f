"""The web page: what it answers, what it refuses, how it stops. A server in this process, asked by gradio_client."""

import asyncio
import io
import json
import re
import socket
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.conftest import ROOT
from tests.test_configs import README, WEB_COMMANDS

gradio = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")
httpx = pytest.importorskip("httpx")
client = pytest.importorskip("gradio_client")

from ldm.conventions import image_to_tensor  # noqa: E402
from ldm.editing.metadata import read_settings  # noqa: E402
from ldm.models.diffusion.conditioning import encode_to_latent  # noqa: E402
from ldm.pipeline import PaintByExample  # noqa: E402
from ldm.util import UserError  # noqa: E402
from ldm.web.canvas import ALPHA, canvas_of, painted  # noqa: E402
from ldm.web.edits import Edits, Job, Progress, fit_preview, preview  # noqa: E402
from ldm.web.page import build, serve  # noqa: E402

MINI = ROOT / "configs/mini"
FILES = [ROOT / "examples" / name for name in ("image/example_2.jpg", "mask/example_2.png", "reference/example_2.jpg")]


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


class Counting:
    """The pipeline, counting the sampling steps it makes."""

    def __init__(self, edit):
        self.edit, self.steps = edit, 0

    def __getattr__(self, name):
        return getattr(self.edit, name)

    def __call__(self, *args, callback, **kwargs):
        def count(step):
            self.steps += 1
            callback(step)

        return self.edit(*args, callback=count, **kwargs)


@pytest.fixture(scope="module")
def edits(edit):
    return Edits(Counting(edit), {"checkpoint": "tiny.safetensors"}, [Image.open(FILES[0])])


@pytest.fixture(scope="module")
def page(edits):
    return build(edits, [tuple(FILES)])


@pytest.fixture(scope="module")
def url(page):
    yield serve(page, "127.0.0.1", free_port())
    page.close()


@pytest.fixture(scope="module")
def submit(url, tmp_path_factory):
    """`submit(seed=1)`: the call /edit for example 2, where nothing else is given, as gradio_client's Job."""
    caller = client.Client(url, verbose=False, analytics_enabled=False, download_files=tmp_path_factory.mktemp("got"))

    def call(image=FILES[0], mask=FILES[1], reference=FILES[2], **numbers):
        files = {"image": image, "mask": mask, "reference": reference}
        files = {name: client.handle_file(str(path)) for name, path in files.items()}
        return caller.submit(**files, **{"steps": 2, "seed": 321, **numbers}, api_name="/edit")

    return call


@pytest.fixture(scope="module")
def ask(submit):
    """`ask(seed=1)` -> (path of the picture, settings)."""
    return lambda **what: submit(**what).result(timeout=60)


def refused(call, *args, **kwargs) -> str:
    """What the call says, one sentence."""
    with pytest.raises(client.exceptions.AppError) as error:
        call(*args, **kwargs)
    words = str(error.value)
    assert "Traceback" not in words and "/tmp" not in words and "\n" not in words
    return words


def test_the_call_keeps_the_photo_outside_the_mask_and_says_how_it_painted(ask):
    path, settings = ask(seed=5, scale=3, sampler="ddim", strength=0.9)
    asked = {"seed": 5, "scale": 3.0, "steps": 2, "sampler": "ddim", "strength": 0.9}
    assert settings == {**asked, "checkpoint": "tiny.safetensors"}
    assert read_settings(path) == settings
    photo, mask, picture = (np.asarray(Image.open(name)) for name in (FILES[0], FILES[1], path))
    changed = (photo != picture).any(axis=2)
    assert picture.shape == photo.shape and not changed[mask < 128].any() and changed[mask == 255].mean() > 0.9
    again, _ = ask(seed=5, scale=3, sampler="ddim", strength=0.9)
    assert np.array_equal(picture, np.asarray(Image.open(again)))


def test_without_a_seed_each_call_draws_one(ask):
    (one, a), (two, b) = ask(seed=None), ask(seed=None)
    assert a["seed"] != b["seed"] and not np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(two)))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"scale": "much"}, "scale 'much' is no number; use for instance 5"),
        ({"scale": "nan"}, "scale nan is out of range"),
        ({"steps": 2.5}, "steps 2.5 is no whole number"),
        ({"steps": 5000}, "5000 sampling steps are out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"sampler": "euler"}, "sampler 'euler' is unknown"),
        ({"strength": 2}, "strength 2.0 is out of range"),
    ],
    ids=str,
)
def test_numbers_out_of_range_get_a_sentence(ask, numbers, words):
    assert words in refused(ask, **numbers)


def bomb(width: int, height: int) -> bytes:
    """A PNG of so many black pixels in a few hundred kB."""
    raw = zlib.compressobj(9)
    data = b"".join(raw.compress(bytes(1 + width // 8)) for _ in range(height)) + raw.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture = Image.open(FILES[0])
    (picture.convert("CMYK") if options.pop("cmyk", False) else picture).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("what", ["image", "mask", "reference"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("paper.pdf", b"%PDF-1.7\n1 0 obj\n", "paper.pdf is not a picture that can be read; use PNG or JPEG"),
        ("nothing.png", b"", "nothing.png is not a picture that can be read"),
        ("half.jpg", encoded("JPEG")[:9000], "half.jpg cannot be read"),
        ("large.png", bomb(10_000, 8_000), "large.png has more than 50 megapixels"),
        ("bomb.png", bomb(20_000, 10_000), "bomb.png has more than 50 megapixels; make it smaller"),
    ],
    ids=lambda x: x if isinstance(x, str) and x[-4] == "." else "",
)
def test_wrong_uploads_get_a_sentence_that_names_them(ask, tmp_path, what, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert len(content) < 10**6
    assert f"the {what} {words}" in refused(ask, **{what: tmp_path / name})


def test_strange_pictures_are_taken(ask, tmp_path):
    """An animated GIF by its first frame, a JPEG of an agency in CMYK."""
    plain = np.asarray(Image.open(FILES[0]))
    for name, content in (
        ("moving.gif", encoded("GIF", save_all=True, append_images=[Image.new("RGB", (600, 400))])),
        ("print.jpg", encoded("JPEG", cmyk=True)),
    ):
        (tmp_path / name).write_bytes(content)
        path, _ = ask(image=tmp_path / name)
        first = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        kept = np.asarray(Image.open(FILES[1])) < 128
        assert np.array_equal(np.asarray(Image.open(path))[kept], first[kept])
        assert np.abs(first.astype(int) - plain).mean() < 12  # the first frame is the photo


def call_by_hand(url: str, data: list) -> tuple[str, str]:
    """The call without gradio_client -> (event, data)."""
    event = httpx.post(f"{url}gradio_api/call/edit", json={"data": data}).json()["event_id"]
    lines = httpx.get(f"{url}gradio_api/call/edit/{event}", timeout=60).text.splitlines()
    return lines[-3].removeprefix("event: "), lines[-2].removeprefix("data: ")


def test_names_with_slashes_and_files_of_the_server(url):
    def upload(name, path):
        reply = httpx.post(f"{url}gradio_api/upload", files={"files": (name, path.read_bytes())}).json()
        return {"path": reply[0], "meta": {"_type": "gradio.FileData"}}

    numbers = [5, 1, "plms", 1, 7]
    names = ("../../etc/a/b.jpg", "..\\c.png", "/ü d.jpg")
    files = [upload(name, path) for name, path in zip(names, FILES, strict=True)]
    event, data = call_by_hand(url, [*files, *numbers])
    assert event == "complete"
    picture, settings = json.loads(data)
    assert picture["path"].endswith("/b_7.png") and settings["seed"] == 7
    for path in ("/etc/hostname", str(ROOT / "README.md"), str(FILES[0])):
        stolen = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event, data = call_by_hand(url, [stolen, *files[1:], *numbers])
        assert event == "error" and "Traceback" not in data
    event, data = call_by_hand(url, [str(FILES[0]), *files[1:], *numbers])
    assert event == "error" and "did not come as a file" in data


def test_the_call_of_the_readme(url, tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(from gradio_client.*?)```", README, flags=re.S)
    assert "http://127.0.0.1:7860" in snippet and "steps=50" in snippet
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(snippet.replace("http://127.0.0.1:7860", url).replace("=50", "=2"), "README.md", "exec"), names)
    assert read_settings(names["picture"]) == names["settings"]


@pytest.mark.parametrize("command", WEB_COMMANDS)
def test_the_command_of_the_readme(command, script, tiny, tmp_path, monkeypatch):
    """As printed, but with the tiny model, and ended once the page is there."""
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: page.close())
    monkeypatch.chdir(tmp_path)
    words = command.split("#")[0].split()[2:]
    assert {"--ckpt", "--listen", "--port"} <= set(words)
    more = ("--config", ROOT / "configs/tiny.yaml", "--ckpt", tiny, "--port", free_port(), "--device", "cpu")
    code, out, err = script("demo", *words, *more)
    assert code == 0 and "the page is at http://" in out, err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = script("demo", *more, "--listen", "127.0.0.1", "--port", port)
    assert code == 2 and f"--port {port}: cannot be had" in err and "Traceback" not in err


def test_a_full_queue_says_so(page, ask, monkeypatch):
    monkeypatch.setattr(page._queue, "max_size", 0)
    with pytest.raises(Exception, match=r"[Qq]ueue is full"):
        ask()


def job(steps: int, **more) -> Job:
    return Job(*(Image.open(path) for path in FILES), steps=steps, **more)


def test_closing_the_stream_ends_the_sampling(edits):
    before = edits.edit.steps

    async def look_once():
        stream = edits.stream(job(500))
        news = await anext(stream)
        await stream.aclose()
        return news

    news = asyncio.run(look_once())
    assert isinstance(news, Progress) and news.step == 1 and max(news.preview.size) == 384
    edits.worker.submit(lambda: None).result()  # whose turn comes when the sampling has ended
    assert edits.edit.steps - before < 100


def test_the_end_of_the_process_ends_the_edit_under_way(edit):
    edits = Edits(Counting(edit), {}, [Image.open(FILES[0])])

    async def look_once():
        stream = edits.stream(job(500))
        await anext(stream)
        edits.close()
        steps = edits.edit.steps
        await stream.aclose()
        return steps

    assert asyncio.run(look_once()) == edits.edit.steps < 100


def test_cancelling_the_call_ends_the_sampling(edits, submit, ask):
    before = edits.edit.steps
    call = submit(steps=900)
    while edits.edit.steps < before + 5:
        time.sleep(0.05)
    call.cancel()
    ask()  # whose turn comes then
    assert edits.edit.steps - before < 300


def test_each_of_several_pictures_has_its_own_settings(edit, edits):
    async def last():
        *_, results = [news async for news in edits.stream(some)]
        return results

    some = job(2, seed=8, n_samples=3)
    results = asyncio.run(last())
    assert [result.settings["seed"] for result in results] == [8, 9, 10]
    single = edit(some.image, some.mask, some.reference, steps=2, seed=9, progress=False)
    difference = np.abs(np.asarray(single).astype(int) - np.asarray(results[1].picture))
    assert difference.max() <= 1  # batches round otherwise


def test_the_preview_is_near_what_the_decoder_makes():
    mini = PaintByExample.load(MINI / "paint_by_example.yaml", ROOT / "pretrained_models/mini.safetensors", "cpu")
    photos = [Image.open(path) for path in sorted((ROOT / "examples/mini/GT_3500").glob("*.png"))]
    weights = fit_preview(mini, photos[:6])
    pixels = torch.stack([image_to_tensor(photo.convert("RGB")) for photo in photos[6:8]])
    with torch.no_grad():
        latent = encode_to_latent(mini.model, pixels, torch.zeros(2, 4, 16, 16))
    seen = preview(weights, latent, side=16)
    assert seen.size == (34, 16)
    wanted = photos[6].convert("RGB").resize((16, 16), Image.Resampling.BOX)
    assert np.abs(np.asarray(seen.crop((0, 0, 16, 16))).astype(int) - np.asarray(wanted)).mean() < 15


def test_strokes_become_a_mask_and_a_mask_strokes():
    photo = Image.new("RGB", (2000, 1000))
    layer = Image.new("RGBA", (1000, 500))
    ImageDraw.Draw(layer).rectangle((100, 100, 199, 149), fill=(228, 0, 132, ALPHA))
    mask = np.asarray(painted([layer], photo))
    inside = np.zeros((1000, 2000), bool)
    inside[200:300, 200:400] = True
    assert set(np.unique(mask)) == {0, 255} and ((mask == 255) != inside).sum() < 4 * 600  # a pixel along the edge
    value = canvas_of(photo, Image.fromarray(mask))
    assert value["background"].size == (1024, 512)
    back = np.asarray(painted(value["layers"], photo))
    assert ((back == 255) != inside).sum() < 6 * 600
    with pytest.raises(UserError, match="nothing is painted"):
        painted([Image.new("RGBA", (1000, 500))], photo)
