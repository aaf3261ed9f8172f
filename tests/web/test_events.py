"""What the page's handlers return, without a browser; tests/web/test_browser.py has them in one."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.web.conftest import FILES

gradio = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")

from ldm.editing.metadata import read_settings  # noqa: E402
from ldm.editing.options import Sampling  # noqa: E402
from ldm.editing.regions import Region  # noqa: E402
from ldm.methods.tokens import LearnedToken, write_token  # noqa: E402
from ldm.models.diffusion.stability import stable_scale  # noqa: E402
from ldm.util import UserError  # noqa: E402
from ldm.web.events import Events  # noqa: E402
from ldm.web.examples import Example, paints_small_world  # noqa: E402
from ldm.web.layout import build_layout, default_preset, preset_choices  # noqa: E402
from ldm.web.request import PUBLISHED, parse_request  # noqa: E402
from ldm.web.several import Marked  # noqa: E402

# preset, scale, n_samples, sampler, steps, strength, keep_layout, keep, mask_from_difference, mix, background, context,
# grow, feather, best, detail_scale, seed
NUMBERS = ("own", 5, 2, "ddim", 2, 1, False, 0.2, False, "", "exact", "by the region", 0, "", 1, None, "7")


@pytest.fixture(scope="module")
def events(worker):
    examples = [Example(*FILES)]
    with gradio.Blocks():
        return Events(worker, build_layout(examples, "cpu"), examples)


def status_of(events, update) -> str:
    return update[events.layout.status]


async def collect(updates) -> list:
    return [update async for update in updates]


def paint(events, photo_path, canvas, reference_path, *numbers, more=None, aside=(), history=()) -> list[dict]:
    return asyncio.run(collect(events.paint(photo_path, canvas, reference_path, more, aside, history, *numbers)))


def test_the_page_says_which_model_it_runs_and_what_that_can_paint(page, worker):
    texts = [block.value for block in page.blocks.values() if isinstance(block, gradio.Markdown)]
    assert any("Model: `tiny.safetensors`" in text for text in texts)
    (banner,) = (text for text in texts if "miniature" in text)
    assert "128 x 128" in banner and "--ckpt hub" in banner and "coloured blurs" in banner
    assert paints_small_world(worker.edit) and not paints_small_world(SimpleNamespace(native_size=512))


def test_the_preset_is_the_devices_and_comes_with_its_time():
    assert [default_preset(device) for device in ("cpu", "mps", "cuda")] == ["fast", "fast", "published"]
    assert preset_choices() == [
        ("fast: 12 steps", "fast"),
        ("draft: 6 steps", "draft"),
        ("as published: 50 steps", "published"),
        ("own steps and sampler", "own"),
    ]
    assert preset_choices(12)[0][0] == "fast: 12 steps, about 2 min"
    assert preset_choices(0.05)[2][0] == "as published: 50 steps, about 2 s"


def test_the_time_of_a_step_is_learned(worker):
    worker.step_seconds = None
    worker.measure()
    worker.executor.submit(lambda: None).result(60)
    assert 0 < worker.step_seconds < 10


def test_an_example_becomes_results_to_choose_from(events):
    chosen = events.take_example(SimpleNamespace(index=0))
    photo_path, canvas = chosen[events.photo_path], chosen[events.layout.photo.canvas]
    assert photo_path == str(FILES[0]) and len(canvas["layers"]) == 1
    assert chosen[events.reference_path] == chosen[events.layout.reference] == str(FILES[2])

    area = events.layout.result
    first, *progress, last = paint(events, photo_path, canvas, str(FILES[2]), *NUMBERS)
    assert "Starting" in status_of(events, first)
    assert progress and all("<progress" in status_of(events, update) for update in progress)
    assert "Done." in status_of(events, last)
    saved = last[events.results]
    assert [result.settings["seed"] for result in saved] == [7, 8]
    assert all(read_settings(result.picture) == result.settings for result in saved)

    second = events.choose_result(saved, SimpleNamespace(index=1))
    assert second[area.settings].value == saved[1].settings and saved[1].picture.endswith("example_2_8.png")
    before, after = (np.asarray(Image.open(path)) for path in (FILES[0], saved[1].picture))
    assert before.shape == after.shape and (before != after).any()


def test_every_setting_of_the_page_reaches_the_picture(events, edit):
    """The result is the call's, with several references; its settings tell."""
    chosen = events.take_example(SimpleNamespace(index=0))
    other = str(ROOT / "examples/reference/example_1.jpg")
    numbers = ("draft", 3, 1, "plms", 50, 0.9, False, 0.2, True, "0.3", "feather", "2", 5, "9", 2, None, "7")
    canvas = chosen[events.layout.photo.canvas]
    *_, last = paint(events, str(FILES[0]), canvas, str(FILES[2]), *numbers, more=[other])
    (saved,) = last[events.results]
    options = {
        "preset": "draft",
        "scale": 3,
        "strength": 0.9,
        "background": "feather",
        "context": 2,
        "grow": 5,
        "feather": 9,
        "best": 2,
        "mask_from_difference": True,
        "mix": 0.3,
    }
    wanted = edit(FILES[0], FILES[1], (FILES[2], other), **options, seed=7, progress=False)
    assert np.abs(np.asarray(wanted).astype(int) - np.asarray(Image.open(saved.picture))).mean() < 0.5
    asked = {
        "sampler": "dpm++",
        "steps": 6,
        "background": "feather",
        "context": 2.0,
        "grow": 5.0,
        "strength": 0.9,
        "best": 2,
        "mask_from_difference": True,
        "mix": 0.3,
    }
    assert asked.items() <= read_settings(saved.picture).items()


def test_keeping_the_layout_takes_the_presets_number_of_steps(events, tmp_path):
    """The page's box is pnp; without a tick the slider beside it means nothing."""
    photo, reference = Image.open(FILES[0]), Image.open(FILES[2])
    how = {"scale": 5, "steps": 50, "sampler": "plms", "strength": 1, "seed": "7"}

    def sampling(**more):
        return parse_request(photo, photo, reference, **how, **more).sampling

    kept = {"keep_layout": True, "keep": 0.5}
    for preset, steps in (("fast", 12), ("published", 50), ("own", 50)):
        assert sampling(preset=preset, **kept) == Sampling(sampler="ddim", steps=steps, keep_layout="pnp", keep=0.5)
    assert sampling(preset="fast", keep_layout=False, keep=0.5) == sampling(preset="fast")
    with pytest.raises(UserError, match="two ways to keep the layout"):
        parse_request(photo, photo, reference, **how | {"strength": 0.5}, preset="fast", **kept)


def test_a_learned_token_is_a_reference(events, tmp_path):
    token, shown = torch.randn(1, 40), torch.full((9, 8, 3), 200, dtype=torch.uint8)
    write_token(LearnedToken(token, shown, token, token), tmp_path / "mine.safetensors")
    path = str(tmp_path / "mine.safetensors")
    taken = events.open_reference(path)
    assert taken[events.reference_path] == path and taken[events.layout.reference].size == (8, 9)
    assert "has no background to cut out" in status_of(events, events.cut_out(path))
    canvas = events.take_example(SimpleNamespace(index=0))[events.layout.photo.canvas]
    results = [
        paint(events, str(FILES[0]), canvas, first, *NUMBERS, more=more)[-1][events.results]
        for first, more in ((path, None), (None, [path]))
    ]
    pictures = [np.asarray(Image.open(saved.picture)) for (saved, _) in results]
    assert np.array_equal(*pictures)
    write_token(LearnedToken(token[:, :8], shown, token[:, :8], token[:, :8]), tmp_path / "mine.safetensors")
    last = paint(events, str(FILES[0]), canvas, path, *NUMBERS)[-1]
    assert "reference mine.safetensors is a token of the shape (1, 8)" in status_of(events, last)
    (tmp_path / "no.safetensors").write_bytes(b"no token")
    assert "reference no.safetensors is damaged" in status_of(
        events, events.open_reference(str(tmp_path / "no.safetensors"))
    )


def brushed(photo, box):
    layer = Image.new("RGBA", photo.size)
    layer.paste((228, 0, 132, 128), box)
    return {"background": photo, "layers": [layer], "composite": photo}


def test_regions_put_aside_are_painted_together_with_the_last(events, edit):
    photo, boxes = Image.open(FILES[0]), [(60, 100, 200, 300), (300, 80, 500, 300)]
    first, second = FILES[2], ROOT / "examples/reference/example_1.jpg"
    several = events.several
    aside, canvas, *emptied, status = several.put_aside(str(FILES[0]), brushed(photo, boxes[0]), str(first), None, [])
    assert emptied == [None, None, None] and "One region is put aside" in status
    assert canvas["layers"] == [] and canvas["background"].getpixel((100, 200)) != photo.getpixel((100, 200))
    *_, last = paint(events, str(FILES[0]), brushed(photo, boxes[1]), str(second), *NUMBERS, aside=aside)
    saved = last[events.results][0]
    assert read_settings(saved.picture)["together"] is True
    wanted = edit(
        photo, regions=[Region(box=box) for box in boxes], references=[first, second], together=True, steps=2,
        sampler="ddim", seed=7, progress=False,
    )  # fmt: skip
    assert np.abs(np.asarray(wanted).astype(int) - np.asarray(Image.open(saved.picture))).mean() < 0.5
    *_, alone = paint(events, str(FILES[0]), canvas, None, *NUMBERS, aside=aside)  # with nothing beside it
    assert "together" not in read_settings(alone[events.results][0].picture)
    assert several.take_back(str(FILES[0]))[0] == []


def test_what_cannot_be_put_aside_or_painted_together_is_told(events):
    photo = Image.open(FILES[0])
    canvas = brushed(photo, (60, 100, 200, 300))
    path, reference = str(FILES[0]), str(FILES[2])
    for given, words in (
        ((None, None, None), "there is no photo"),
        ((path, canvas, None), "there is no reference"),
        ((path, {**canvas, "layers": []}, reference), "nothing is painted on the photo"),
    ):
        assert words in events.several.put_aside(*given, None, [])[-1]
    aside = [Marked(canvas["layers"], [reference])]
    for changed, words in (
        ((True, 0.2, False), "together and keep_layout exclude each other"),
        ((False, 0.2, True), "together and mask_from_difference exclude each other"),
    ):
        numbers = (*NUMBERS[:6], *changed, *NUMBERS[9:])
        last = paint(events, path, brushed(photo, (300, 80, 500, 300)), reference, *numbers, aside=aside)[-1]
        assert words in status_of(events, last)


def test_results_stay_in_the_history_and_can_be_edited_further(events):
    chosen = events.take_example(SimpleNamespace(index=0))
    canvas = chosen[events.layout.photo.canvas]
    *_, first = paint(events, str(FILES[0]), canvas, str(FILES[2]), *NUMBERS)
    *_, last = paint(events, str(FILES[0]), canvas, str(FILES[2]), *NUMBERS[:-1], "9", history=first[events.history])
    assert [saved.settings["seed"] for saved in last[events.history]] == [9, 10, 7, 8]
    earlier = events.choose_result(last[events.history], SimpleNamespace(index=2))[events.shown]
    assert earlier.settings["seed"] == 7
    further = events.edit_further(earlier)
    photo, canvas = further[events.photo_path], further[events.layout.photo.canvas]
    assert photo == earlier.picture and canvas["layers"] == []
    assert np.array_equal(np.asarray(canvas["background"]), np.asarray(Image.open(photo).convert("RGB")))
    assert "there is no result: add one" in status_of(events, events.edit_further(None))


def test_own_steps_are_there_for_the_own_preset_alone(events):
    assert [part.visible for part in events.choose_preset("own")] == [True, True]
    assert [part.visible for part in events.choose_preset("fast")] == [False, False]


def test_the_slider_says_up_to_which_scale_colours_stay_right(events):
    few = events.say_stable_scale("own", "plms", 25, False).info
    assert few == f"Above {stable_scale('plms', 25):g}, colours may become far too strong"
    assert not events.say_stable_scale("fast", "plms", 25, False).info


@pytest.mark.parametrize("preset", ["own", PUBLISHED, "fast"])
def test_with_the_layout_kept_the_slider_speaks_of_what_then_paints(events, preset, monkeypatch):
    asked = []
    monkeypatch.setattr("ldm.web.events.stable_scale", lambda *how: asked.append(how) or 3.0)
    assert events.say_stable_scale(preset, "plms", 25, True).info.startswith("Above 3,")
    picture = Image.new("RGB", (64, 64))
    numbers = {"scale": 5, "strength": 1, "seed": 1, "sampler": "plms", "steps": 25, "preset": preset}
    painted = parse_request(picture, picture, picture, **numbers, keep_layout=True, keep=0.5).sampling
    assert asked == [(painted.sampler, painted.steps)]


def test_a_missing_picture_or_stroke_is_told_in_the_status(events):
    canvas = events.take_example(SimpleNamespace(index=0))[events.layout.photo.canvas]
    empty = {**canvas, "layers": []}
    photo, reference = str(FILES[0]), str(FILES[2])
    for inputs, message in (
        ((None, None, None), "there is no photo: add one"),
        ((photo, canvas, None), "there is no reference: add one"),
        ((photo, empty, reference), "nothing is painted on the photo: brush over"),
    ):
        (only,) = paint(events, *inputs, *NUMBERS)
        assert message in status_of(events, only) and "alert" in status_of(events, only)
    # and is gone with the next thing that goes right
    assert "alert" not in status_of(events, events.take_example(SimpleNamespace(index=0)))


def test_a_photo_that_cannot_be_read_leaves_the_page_as_it_was(events, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    file = {"path": str(tmp_path / "broken.png"), "meta": {"_type": "gradio.FileData"}}
    photo, reference = events.take_photo(file), events.take_reference(file)
    assert photo[events.photo_path] is None and reference[events.reference_path] is None
    for name, update in (("photo", photo), ("reference", reference)):
        assert f"the {name} broken.png is not a picture" in status_of(events, update)


def test_a_file_that_was_deleted_is_an_error(events, tmp_path):
    update = events.take_mask(str(tmp_path / "gone.png"), str(FILES[0]))
    assert "the mask gone.png was deleted after an hour: add it again" in status_of(events, update)
    assert list(update) == [events.layout.status]


def test_a_mask_from_a_file_becomes_a_stroke(events):
    value = events.take_mask(str(ROOT / "examples/mask/example_2.png"), str(FILES[0]))[events.layout.photo.canvas]
    alpha = np.asarray(value["layers"][0].getchannel("A"))
    mask = np.asarray(Image.open(FILES[1]).convert("L"))
    assert alpha.shape == mask.shape and np.array_equal(alpha > 0, mask >= 128)


def test_unexpected_errors_are_logged_and_not_shown(events, monkeypatch, capsys):
    monkeypatch.setattr("ldm.web.events.open_upload", lambda *_: 1 / 0)
    status = status_of(events, events.take_mask("mask.png", "photo.png"))
    assert "something went wrong on the server" in status and "division" not in status
    assert "ZeroDivisionError" in capsys.readouterr().err
