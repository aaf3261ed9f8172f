"""Clicks on the page become strokes; a reference loses its background."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.web.conftest import FILES

gradio = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")

from ldm.web.canvas import canvas_value, mask_from_layers  # noqa: E402
from ldm.web.events import Events  # noqa: E402
from ldm.web.examples import Example  # noqa: E402
from ldm.web.layout import build_layout  # noqa: E402
from ldm.web.picking import CORNER, OFF, ON, prompt_of  # noqa: E402

SQUARE = (600, 300, 1200, 900)


@pytest.fixture(scope="module")
def events(worker):
    examples = [Example(*FILES)]
    with gradio.Blocks():
        return Events(worker, build_layout(examples, "cpu"), examples)


@pytest.fixture
def photo(tmp_path):
    """Wider than the canvas: a red square on green."""
    picture = Image.new("RGB", (2048, 1200), (40, 140, 60))
    picture.paste((200, 30, 30), SQUARE)
    picture.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def box_of(picking, update, photo):
    return mask_from_layers(update[picking.canvas]["layers"], Image.open(photo)).getbbox()


def near(box, wanted=SQUARE):
    return np.abs(np.subtract(box, wanted)).max() <= 8


def test_clicks_make_and_correct_a_stroke(events, photo):
    picking = events.picking
    assert picking.begin(photo)[picking.area.picture].size == (1024, 600)
    one = picking.click(photo, ON, [], SimpleNamespace(index=(450, 300)))
    assert near(box_of(picking, one, photo)) and one[picking.picks] == [(ON, 901, 601)]
    two = picking.click(photo, OFF, one[picking.picks], SimpleNamespace(index=(1023, 599)))
    assert two[picking.picks][-1] == (OFF, 2047, 1199) and near(box_of(picking, two, photo))
    assert picking.undo(photo, two[picking.picks])[picking.picks] == one[picking.picks]
    none = picking.undo(photo, one[picking.picks])
    assert none[picking.picks] == [] and none[picking.canvas]["layers"] == []


def test_two_corners_or_strokes_are_a_loose_box(events, photo):
    picking = events.picking
    one = picking.click(photo, CORNER, [], SimpleNamespace(index=(650, 500)))
    assert one[picking.canvas]["layers"] == []
    two = picking.click(photo, CORNER, one[picking.picks], SimpleNamespace(index=(250, 100)))
    assert near(box_of(picking, two, photo))
    rough = Image.new("L", (2048, 1200))
    rough.paste(255, (540, 250, 1260, 960))
    assert near(box_of(picking, picking.snap(photo, canvas_value(Image.open(photo), rough)), photo))


def test_what_is_wrong_is_said_and_changes_nothing(events, photo, tmp_path):
    picking = events.picking
    for update in (
        picking.snap(photo, {"layers": []}),
        picking.click(None, ON, [], SimpleNamespace(index=(1, 1))),
        picking.undo(str(tmp_path / "gone.png"), []),
        events.cut_out(None),
    ):
        assert list(update) == [events.layout.status] and "wrong" in update[events.layout.status]
    assert picking.begin(None) == {picking.picks: [], picking.area.picture: None}


def test_prompts():
    assert prompt_of([]) is None and prompt_of([(OFF, 1, 1), (CORNER, 2, 2)]) is None
    assert prompt_of([(CORNER, 9, 9), (CORNER, 5, 1), (CORNER, 2, 7)]).box == (2, 1, 6, 8)


def test_a_reference_is_cut_out(events, photo):
    update = events.cut_out(photo)
    cut = Image.open(update[events.reference_path])
    assert cut.mode == "RGBA" and near(cut.getchannel("A").getbbox())
    assert update[events.reference_path].endswith("photo_cutout.png") and update[events.layout.reference].width == 512
