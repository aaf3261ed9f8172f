"""IOPaint's requests: what they are answered, and that nothing they contain makes more than a sentence."""

import base64
import io
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ldm.editing.metadata import read_settings
from tests.web.conftest import FILES

pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")
httpx = pytest.importorskip("httpx")

from tests.web.test_call import bomb  # noqa: E402

INPAINT, MASK, CUT_OUT = (f"api/v1/{name}" for name in ("inpaint", "run_plugin_gen_mask", "run_plugin_gen_image"))


def text(data: bytes, prefix: str = "") -> str:
    return prefix + base64.b64encode(data).decode()


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return text(file.getvalue())


IMAGE, MASKED, REFERENCE = (text(path.read_bytes()) for path in FILES)
GIVEN = {"image": IMAGE, "mask": MASKED, "paint_by_example_example_image": REFERENCE, "sd_steps": 2}


@pytest.fixture(scope="module")
def post(url):
    with httpx.Client(timeout=120) as client:
        yield lambda path, **fields: client.post(url + path, json=fields)


def pixels(reply) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(reply.content)))


def test_the_same_seed_gives_the_commands_pixels(post, edit, example):
    reply = post(INPAINT, **GIVEN, sd_seed=7, sd_guidance_scale=3, sd_mask_blur=11, prompt="", negative_prompt="x")
    wanted = edit(**example, seed=7, scale=3, steps=2, progress=False)
    assert np.array_equal(pixels(reply), np.asarray(wanted)) and reply.headers["x-seed"] == "7"
    assert read_settings(Image.open(io.BytesIO(reply.content)))["scale"] == 3.0
    prefixed = GIVEN | {"image": "data:image/jpeg;base64," + IMAGE, "mask": MASKED.rstrip("=")}
    assert post(INPAINT, **prefixed, sd_seed=7, sd_guidance_scale=3).content == reply.content


def test_a_seed_of_minus_one_is_drawn(post):
    one, two = (post(INPAINT, **GIVEN, sd_seed=-1) for _ in range(2))
    assert one.headers["x-seed"] != two.headers["x-seed"]
    again = post(INPAINT, **GIVEN, sd_seed=int(one.headers["x-seed"]))
    assert np.array_equal(pixels(again), pixels(one))


def test_only_the_cut_is_painted(post, example):
    cut = {"use_croper": True, "croper_x": 180, "croper_y": 20, "croper_width": 150, "croper_height": 400}
    changed = (pixels(post(INPAINT, **GIVEN, **cut)) != np.asarray(example["image"])).any(axis=2)
    assert changed[:, 180:330].any() and not changed[:, :180].any() and not changed[:, 330:].any()


def test_front_ends_learn_what_there_is(url):
    config = httpx.get(f"{url}api/v1/server-config").json()
    assert {plugin["name"] for plugin in config["plugins"]} == {"InteractiveSeg", "RemoveBG"}
    assert httpx.get(f"{url}api/v1/model").json() == config["modelInfos"][0]
    assert config["modelInfos"][0]["name"] == "Fantasy-Studio/Paint-by-Example"
    assert httpx.get(f"{url}api/v1/inputimage").status_code == 404
    assert httpx.get(f"{url}api/v1/inpaint").status_code == 405


def test_a_mask_and_a_cut_out(post):
    photo = Image.new("RGB", (90, 60), (40, 140, 60))
    photo.paste((200, 30, 30), (30, 15, 60, 45))
    mask = pixels(post(MASK, name="InteractiveSeg", image=encoded(photo), clicks=[[45, 30, 1], [3.0, 3, 0]]))
    assert mask.shape == (60, 90, 4) and (mask[30, 45] == 255).all() and (mask[3, 3] == 0).all()
    assert abs((mask[..., 3] > 127).sum() - 900) < 90
    assert pixels(post(CUT_OUT, name="RemoveBG", image=encoded(photo)))[..., 3].mean() == pytest.approx(42.5, abs=4)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": None}, "image is missing: send a picture in base64"),
        ({"paint_by_example_example_image": ""}, "paint_by_example_example_image is missing"),
        ({"image": "data:image/png;base64,"}, "image is missing: send a picture in base64"),
        ({"image": "!!!"}, "image is not base64"),
        ({"mask": "ü" * 10}, "mask is not base64"),
        ({"mask": text(b"%PDF-1.7")}, "the mask in the request is not a picture that can be read: use PNG or JPEG"),
        ({"image": IMAGE[:20_000]}, "the image in the request cannot be read"),
        ({"mask": encoded(Image.new("L", (300, 200), 255))}, "the mask is 300 x 200 but the image is 600 x 400: send"),
        ({"mask": encoded(Image.new("L", (600, 400)))}, "has nothing to paint"),
        ({"image": text(bomb(20_000, 10_000))}, "the image has more than 50 megapixels: make it smaller"),
        ({"sd_steps": 5000}, "5000 sampling steps are out of range"),
        ({"sd_steps": "many"}, "sd_steps 'many' is not a whole number"),
        ({"sd_steps": None}, "sd_steps None is not a whole number"),
        ({"sd_guidance_scale": -1}, "scale -1.0 is out of range"),
        ({"sd_guidance_scale": [1]}, "sd_guidance_scale [1] is not a number"),
        ({"sd_seed": -2}, "seed -2 is out of range"),
        ({"sd_seed": 2**70}, "is out of range"),
        ({"sd_strength": 3}, "strength 3.0 is out of range"),
        ({"sd_sampler": "\ud800"}, "sd_sampler '\\ud800' is unknown: use one of"),
        ({"sd_keep_unmasked_area": "no"}, "sd_keep_unmasked_area 'no' is neither true nor false"),
        ({"use_croper": True}, "contains nothing of the image"),
        ({"use_croper": True, "croper_width": 10**30, "croper_height": "x"}, "croper_height 'x' is not a whole"),
    ],
)
def test_wrong_fields_get_a_sentence(url, fields, words):
    body = json.dumps(GIVEN | fields)
    reply = httpx.post(url + INPAINT, content=body, timeout=60)
    assert reply.status_code == 422 and words in reply.json()["errors"], reply.text
    assert "Traceback" not in reply.text and "\n" not in reply.text


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe{}", b"null", DEEP.encode(), b'{"a": ' + b"9" * 9999])
def test_bodies_that_are_no_json_object(url, body):
    for path in (INPAINT, MASK, CUT_OUT):
        reply = httpx.post(url + path, content=body, timeout=60)
        assert reply.status_code == 422 and "the request is not" in reply.json()["errors"]


@pytest.mark.parametrize(
    ("clicks", "words"),
    [
        (None, "clicks are not a list of 1 to 100"),
        ([], "clicks are not a list"),
        ([[1, 2, 1]] * 101, "clicks are not a list"),
        ([[1, 2]], "is not [x, y, 1]"),
        ([[1, 2, 0]], "no click is on the object"),
        ([[1, "a", 1]], "is not a number"),
        ([[float("nan"), 2, 1]], "click -1,2 is not on the photo"),
        ([[1e300, 2, 1]], "is not on the photo"),
    ],
)
def test_wrong_clicks_get_a_sentence(url, clicks, words):
    body = json.dumps({"name": "InteractiveSeg", "image": IMAGE, "clicks": clicks})
    reply = httpx.post(url + MASK, content=body, timeout=60)
    assert reply.status_code == 422 and words in reply.json()["errors"], reply.text


def test_unknown_plugins_and_large_bodies(url, post, monkeypatch):
    assert "use RemoveBG" in post(CUT_OUT, name="GFPGAN", image=IMAGE).json()["errors"]
    monkeypatch.setattr("ldm.web.iopaint.MAX_BODY", 1000)
    reply = post(INPAINT, **GIVEN)
    assert reply.status_code == 413 and "has more than" in reply.json()["errors"]
    monkeypatch.setattr("ldm.web.iopaint.MAX_WAITING", 0)
    assert post(INPAINT, **GIVEN).status_code == 503


def test_the_servers_own_errors_are_logged_and_not_shown(post, monkeypatch, capsys):
    monkeypatch.setattr("ldm.web.iopaint.read_inpainting", lambda fields: 1 / 0)
    reply = post(INPAINT, **GIVEN)
    assert reply.status_code == 500 and "something went wrong on the server" in reply.json()["errors"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_client_that_hangs_up_ends_its_edit(url, worker):
    before = worker.edit.steps
    with worker.edit.paused_after_a_step(), pytest.raises(httpx.ReadTimeout):
        httpx.post(url + INPAINT, json=GIVEN | {"sd_steps": 900}, timeout=httpx.Timeout(2))
    worker.executor.submit(lambda: None).result(60)
    assert worker.edit.steps - before < 900


def test_a_request_that_does_not_arrive_is_given_up(url, monkeypatch):
    monkeypatch.setattr("ldm.web.iopaint.MAX_READING", 0.2)
    host, port = re.match(r"http://(.*):(\d+)/", url).groups()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = (
            f"POST /{INPAINT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        connection.sendall(head.encode() + b"{")
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]


def test_every_client_gets_its_own_picture(post, edit, example):
    """Eight at once, each with its seed."""
    barrier = threading.Barrier(8)

    def ask(seed):
        barrier.wait(30)
        return seed, post(INPAINT, **GIVEN, sd_seed=seed)

    with ThreadPoolExecutor(8) as pool:
        replies = dict(pool.map(ask, range(8)))
    assert all(reply.headers["x-seed"] == str(seed) for seed, reply in replies.items())
    assert len({reply.content for reply in replies.values()}) == 8
    wanted = edit(**example, seed=3, scale=7.5, steps=2, progress=False)
    assert np.array_equal(pixels(replies[3]), np.asarray(wanted))
