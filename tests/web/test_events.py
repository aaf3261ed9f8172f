"""What the page's handlers return, without a browser; tests/web/test_browser.py has them in one."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.web.conftest import FILES

gradio = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")

from ldm.editing.metadata import read_settings  # noqa: E402
from ldm.web.events import Events  # noqa: E402
from ldm.web.examples import Example  # noqa: E402
from ldm.web.layout import build_layout  # noqa: E402

NUMBERS = (5, 2, "ddim", 1, "7", 2)  # scale, steps, sampler, strength, seed, n_samples


@pytest.fixture(scope="module")
def events(worker):
    examples = [Example(*FILES)]
    with gradio.Blocks():
        return Events(worker, build_layout(examples), examples)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """The sentences in the corner of the page."""
    messages = []
    monkeypatch.setattr(gradio, "Warning", lambda message, duration: messages.append(message))
    return messages


async def collect(updates) -> list:
    return [update async for update in updates]


def paint(events, *inputs) -> list[dict]:
    return asyncio.run(collect(events.paint(*inputs)))


def test_the_page_says_which_model_it_runs(page):
    texts = [block.value for block in page.blocks.values() if isinstance(block, gradio.Markdown)]
    assert any("`tiny.safetensors`" in text for text in texts)


def test_an_example_becomes_results_to_choose_from(events):
    chosen = events.take_example(SimpleNamespace(index=0))
    photo_path, canvas = chosen[events.photo_path], chosen[events.layout.photo.canvas]
    assert photo_path == str(FILES[0]) and len(canvas["layers"]) == 1
    assert chosen[events.reference_path] == chosen[events.layout.reference] == str(FILES[2])

    area = events.layout.result
    first, *progress, last = paint(events, photo_path, canvas, str(FILES[2]), *NUMBERS)
    assert "Starting" in first[area.status]
    assert progress and all("<progress" in update[area.status] for update in progress)
    assert "Done." in last[area.status]
    saved = last[events.results]
    assert [result.settings["seed"] for result in saved] == [7, 8]
    assert all(read_settings(result.picture) == result.settings for result in saved)

    second = events.choose_result(saved, SimpleNamespace(index=1))
    assert second[area.settings].value == saved[1].settings and saved[1].picture.endswith("example_2_8.png")
    before, after = (np.asarray(Image.open(path)) for path in (FILES[0], saved[1].picture))
    assert before.shape == after.shape and (before != after).any()


def test_a_missing_picture_or_stroke_is_an_error(events):
    canvas = events.take_example(SimpleNamespace(index=0))[events.layout.photo.canvas]
    empty = {**canvas, "layers": []}
    photo, reference = str(FILES[0]), str(FILES[2])
    for inputs, message in (
        ((None, None, None), "there is no photo: add one"),
        ((photo, canvas, None), "there is no reference: add one"),
        ((photo, empty, reference), "nothing is painted on the photo: brush over"),
    ):
        with pytest.raises(gradio.Error, match=message):
            paint(events, *inputs, *NUMBERS)


def test_a_photo_that_cannot_be_read_leaves_the_page_as_it_was(events, warnings, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    file = {"path": str(tmp_path / "broken.png"), "meta": {"_type": "gradio.FileData"}}
    assert events.take_photo(file)[events.photo_path] is None
    assert events.take_reference(file) == (None, None)
    assert [warning.split(" is ")[0] for warning in warnings] == ["the photo broken.png", "the reference broken.png"]


def test_a_file_that_was_deleted_is_an_error(events, tmp_path):
    with pytest.raises(gradio.Error, match=r"the mask gone.png was deleted after an hour: add it again"):
        events.take_mask(str(tmp_path / "gone.png"), str(FILES[0]))


def test_a_mask_from_a_file_becomes_a_stroke(events):
    value = events.take_mask(str(ROOT / "examples/mask/example_2.png"), str(FILES[0]))
    alpha = np.asarray(value["layers"][0].getchannel("A"))
    mask = np.asarray(Image.open(FILES[1]).convert("L"))
    assert alpha.shape == mask.shape and np.array_equal(alpha > 0, mask >= 128)


def test_unexpected_errors_are_logged_and_not_shown(events, monkeypatch, capsys):
    monkeypatch.setattr("ldm.web.events.open_upload", lambda *_: 1 / 0)
    with pytest.raises(gradio.Error, match="something went wrong on the server") as error:
        events.take_mask("mask.png", "photo.png")
    assert "division" not in str(error.value) and "ZeroDivisionError" in capsys.readouterr().err
