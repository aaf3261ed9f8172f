"""The call /edit: what it answers, what it refuses, how it stops. A server in this process, asked by gradio_client."""

import io
import json
import re
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.web.conftest import FILES

pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")
httpx = pytest.importorskip("httpx")
client = pytest.importorskip("gradio_client")

from ldm.editing.metadata import read_settings  # noqa: E402
from ldm.methods.tokens import LearnedToken, write_token  # noqa: E402


def refused(call, *args, **kwargs) -> str:
    """What the call says, one sentence."""
    with pytest.raises(client.exceptions.AppError) as error:
        call(*args, **kwargs)
    words = str(error.value)
    assert "Traceback" not in words and "/tmp" not in words and "\n" not in words
    return words


def test_the_call_has_its_published_name_and_parameters(url):
    endpoints = httpx.get(f"{url}gradio_api/info").json()["named_endpoints"]
    assert list(endpoints) == ["/edit"]
    parameters = [
        (parameter["parameter_name"], parameter["parameter_default"]) for parameter in endpoints["/edit"]["parameters"]
    ]
    assert parameters == [
        ("image", None),
        ("mask", None),
        ("reference", None),
        ("scale", 5.0),
        ("steps", 50),
        ("sampler", "plms"),
        ("strength", 1.0),
        ("seed", None),
        ("keep_layout", None),
        ("keep", None),
        ("mask_from_difference", False),
        ("best", 1),
        ("best_preset", "draft"),
        ("detail_scale", None),
    ]


def test_the_call_keeps_the_photo_outside_the_mask_and_says_how_it_painted(ask):
    path, settings = ask(seed=5, scale=3, sampler="ddim", strength=0.9)
    asked = {"seed": 5, "scale": 3.0, "steps": 2, "sampler": "ddim", "strength": 0.9}
    assert settings == {**asked, "precision": "full", "checkpoint": "tiny.safetensors"}
    assert read_settings(path) == settings
    photo, mask, picture = (np.asarray(Image.open(name)) for name in (FILES[0], FILES[1], path))
    changed = (photo != picture).any(axis=2)
    assert picture.shape == photo.shape and not changed[mask < 128].any() and changed[mask == 255].mean() > 0.9
    again, _ = ask(seed=5, scale=3, sampler="ddim", strength=0.9)
    assert np.array_equal(picture, np.asarray(Image.open(again)))


def test_the_call_keeps_the_layout_finds_the_outline_and_takes_a_token(ask, tmp_path):
    zeros, shown = torch.zeros(1, 40), torch.zeros(8, 8, 3, dtype=torch.uint8)
    write_token(LearnedToken(zeros, shown, zeros, zeros), tmp_path / "mine.safetensors")
    path, settings = ask(reference=tmp_path / "mine.safetensors", keep_layout="ddpm", mask_from_difference=True)
    asked = {"keep_layout": "ddpm", "keep": 0.2, "sampler": "ddim", "steps": 2, "mask_from_difference": True}
    assert asked.items() <= settings.items() and read_settings(path) == settings
    _, settings = ask(best=2)
    assert len(settings["tried"]) == 2 and settings["best_preset"] == "draft"


def test_wrong_tokens_get_a_sentence(ask, tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"no token")
    assert "reference no.safetensors is damaged" in refused(ask, reference=tmp_path / "no.safetensors")
    zeros, shown = torch.zeros(1, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)
    write_token(LearnedToken(zeros, shown, zeros, zeros), tmp_path / "small.safetensors")
    words = refused(ask, reference=tmp_path / "small.safetensors")
    assert "reference small.safetensors is a token of the shape (1, 8), but the model's have (1, 40)" in words


def test_without_a_seed_each_call_draws_one(ask):
    (one, a), (two, b) = ask(seed=None), ask(seed=None)
    assert a["seed"] != b["seed"] and not np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(two)))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"scale": "much"}, "scale 'much' is not a number: use for example 5"),
        ({"scale": "nan"}, "scale nan is out of range"),
        ({"steps": 2.5}, "steps 2.5 is not a whole number: use for example 50"),
        ({"steps": 5000}, "5000 sampling steps are out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"sampler": "euler"}, "sampler 'euler' is unknown"),
        ({"strength": 2}, "strength 2.0 is out of range"),
        ({"keep_layout": "p2p"}, "keep_layout 'p2p' is unknown"),
        ({"keep_layout": "ddpm", "strength": 0.5}, "keep_layout and strength 0.5 are two ways"),
        ({"keep_layout": "ddpm", "sampler": "unipc"}, "keep_layout samples by ddim, not by unipc"),
        ({"keep_layout": "ddpm", "best": 2}, "best 2 tries seeds by a preset, which keep_layout does not take"),
        ({"keep": 0.5}, "keep 0.5 does nothing by itself"),
        ({"mask_from_difference": "maybe"}, "mask_from_difference 'maybe' is neither true nor false"),
        ({"best_preset": "slow"}, "best_preset 'slow' is unknown"),
    ],
    ids=str,
)
def test_numbers_out_of_range_get_a_sentence(ask, numbers, words):
    assert words in refused(ask, **numbers)


def bomb(width: int, height: int) -> bytes:
    """A PNG of width x height black pixels, in a few hundred kB."""
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
        ("paper.pdf", b"%PDF-1.7\n1 0 obj\n", "paper.pdf is not a picture that can be read: use PNG or JPEG"),
        ("nothing.png", b"", "nothing.png is not a picture that can be read"),
        ("half.jpg", encoded("JPEG")[:9000], "half.jpg cannot be read"),
        ("large.png", bomb(10_000, 8_000), "large.png has more than 50 megapixels"),
        ("bomb.png", bomb(20_000, 10_000), "bomb.png has more than 50 megapixels: make it smaller"),
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

    numbers = [5, 1, "plms", 1, 7, None, None, False, 1, "draft", None]
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
    assert event == "error" and "the image was not sent as a file: send it with gradio_client's handle_file" in data


def test_the_documented_call(url, tmp_path, monkeypatch):
    (snippet,) = (
        snippet
        for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for snippet in re.findall(r"```python\n(from gradio_client.*?)```", path.read_text(), flags=re.DOTALL)
    )
    assert "http://127.0.0.1:7860" in snippet and "steps=50" in snippet
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(snippet.replace("http://127.0.0.1:7860", url).replace("=50", "=2"), "documented call", "exec"), names)
    assert read_settings(names["picture"]) == names["settings"]


def test_a_full_queue_says_so(page, ask, monkeypatch):
    monkeypatch.setattr(page._queue, "max_size", 0)
    with pytest.raises(Exception, match=r"[Qq]ueue is full"):
        ask()


def test_cancelling_the_call_ends_the_sampling(worker, submit, ask):
    before, deadline = worker.edit.steps, time.monotonic() + 60
    call = submit(steps=900)
    while worker.edit.steps < before + 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    call.cancel()
    ask()  # its turn comes when the sampling has ended
    assert worker.edit.steps - before < 900
