"""The web page as a person meets it: a real server, a real browser, mouse and keyboard."""

import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from ldm.editing.metadata import read_settings
from tests.conftest import ROOT

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[web]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
PHOTO, REFERENCE = ROOT / "examples/image/example_2.jpg", ROOT / "examples/reference/example_2.jpg"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        yield chromium
        chromium.close()


@pytest.fixture(params=SIZES)
def tab(browser, demo, request):
    width, height = SIZES[request.param]
    tab = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    wrong = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(demo.url)
    tab.wait_for_selector("#photo input[type=file]", state="attached", timeout=60_000)
    yield tab
    assert not wrong
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
    tab.close()


def stroke(tab) -> tuple[float, float, float, float]:
    """A real one, across the middle of the photo -> the box around it, in 0..1 of the photo's sides."""
    tab.wait_for_selector("#canvas canvas")
    tab.wait_for_timeout(2000)  # the canvas fits itself to the photo
    tab.locator("#canvas").scroll_into_view_if_needed()
    box = tab.locator("#canvas canvas").last.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x - 40, y)
    tab.mouse.down()
    for i in range(1, 21):
        tab.mouse.move(x - 40 + 4 * i, y + (i % 4) * 5)
    tab.mouse.up()
    tab.wait_for_timeout(500)


def drag(tab, *points: tuple[float, float]) -> None:
    """A stroke through these points, given in 0..1 of the photo's sides; outside of that, they are beside it."""
    tab.wait_for_selector("#canvas canvas")
    tab.wait_for_timeout(2000)
    tab.locator("#canvas").scroll_into_view_if_needed()
    box = tab.locator("#canvas canvas").last.bounding_box()
    with Image.open(PHOTO) as photo:
        scale = min(box["width"] / photo.width, box["height"] / photo.height)
        width, height = scale * photo.width, scale * photo.height
    left, top = box["x"] + (box["width"] - width) / 2, box["y"] + (box["height"] - height) / 2
    places = [(left + x * width, top + y * height) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=8)
    tab.mouse.up()
    tab.wait_for_timeout(500)


def paint(tab, timeout=120_000) -> None:
    tab.get_by_role("button", name="Paint", exact=True).click()
    tab.wait_for_selector("#compare img", timeout=timeout)


def download(tab, folder):
    with tab.expect_download() as waiting:
        tab.locator("#download").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_stroke_and_a_reference_become_an_edit_of_the_stroke_alone(tab, tmp_path):
    tab.set_input_files("#photo input[type=file]", PHOTO)
    stroke(tab)
    tab.set_input_files("#reference input[type=file]", REFERENCE)
    tab.wait_for_selector("#reference img")
    paint(tab)
    path = download(tab, tmp_path)
    picture, photo = (np.asarray(Image.open(name).convert("RGB")).astype(int) for name in (path, PHOTO))
    assert re.fullmatch(r"example_2_\d+\.png", path.name) and picture.shape == photo.shape
    changed = (picture != photo).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    height, width = changed.shape
    assert 0.3 * height < rows[0] and rows[-1] < 0.7 * height  # the stroke is in the middle, and so is all that changed
    assert 0.2 * width < columns[0] and columns[-1] < 0.8 * width
    assert 0.005 < changed.mean() < 0.2
    assert read_settings(path)["seed"] == int(path.stem.rsplit("_", 1)[1])


OUTSIDE = {  # name -> points of a stroke, and the box of what it paints, in 0..1 of the photo's sides
    "left": ([(-0.05, 0.5), (0.3, 0.5)], (0, 0.5, 0.3, 0.5)),
    "top": ([(0.4, -0.04), (0.4, 0.3)], (0.4, 0, 0.4, 0.3)),
    "across a corner": ([(-0.04, 0.8), (0.2, 1.04), (0.2, 0.7)], (0, 0.7, 0.2, 1)),
    "around, then in": ([(-0.04, 0.1), (-0.04, 0.5), (0.3, 0.5)], (0, 0.5, 0.3, 0.5)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_stroke_from_outside_paints_what_lies_on_the_photo(name, tab, tmp_path):
    points, (x0, y0, x1, y1) = OUTSIDE[name]
    tab.set_input_files("#photo input[type=file]", PHOTO)
    drag(tab, *points)
    tab.set_input_files("#reference input[type=file]", REFERENCE)
    tab.wait_for_selector("#reference img")
    paint(tab)
    path = download(tab, tmp_path)
    picture, photo = (np.asarray(Image.open(file).convert("RGB")).astype(int) for file in (path, PHOTO))
    changed = (picture != photo).any(axis=2)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) / changed.shape[1 - axis] for axis in (1, 0))
    found = columns[0], rows[0], columns[-1], rows[-1]
    brush = 0.1  # half its width, at most
    assert all(abs(edge - expected) < brush for edge, expected in zip(found, (x0, y0, x1, y1), strict=True)), found


def test_a_press_beside_the_photo_alone_paints_nothing(tab):
    tab.set_input_files("#photo input[type=file]", PHOTO)
    drag(tab, (-0.05, 0.5), (-0.04, 0.6))
    tab.set_input_files("#reference input[type=file]", REFERENCE)
    tab.wait_for_selector("#reference img")
    tab.get_by_role("button", name="Paint", exact=True).click()
    tab.wait_for_selector("text=nothing is painted on the photo", timeout=20_000)


def test_an_example_by_keyboard_alone(tab):
    """Tab to the first example, Enter; Tab to Paint, Enter."""
    focus = "(e => e.ariaLabel || (e.tagName == 'BUTTON' && e.textContent.trim()))(document.activeElement)"

    def reach(name: str) -> None:
        for _ in range(80):
            tab.keyboard.press("Tab")
            if tab.evaluate(focus) == name:
                return
        raise AssertionError(f"{name} cannot be reached")

    reach("Thumbnail 1 of 12")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#canvas canvas")
    tab.wait_for_selector("#reference img")
    tab.wait_for_timeout(2000)
    reach("Paint")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#compare img", timeout=60_000)


def choose_steps(tab, number: int) -> None:
    """The preset of one's own steps, in the settings that are folded away."""
    if not tab.locator("input[aria-label*='Steps']").first.is_visible():
        tab.get_by_role("button", name="More settings").click()
        tab.locator("#speed input").click()
        tab.get_by_role("option", name="own steps and sampler").click()
        tab.wait_for_selector("input[aria-label*='Steps']")
    tab.locator("input[aria-label*='Steps']").first.fill(str(number))


def test_stop_stops_and_leaves_the_page_usable(tab):
    tab.locator("#examples button").first.click()
    tab.wait_for_selector("#reference img")
    tab.wait_for_timeout(2000)
    choose_steps(tab, 100)
    tab.get_by_role("button", name="Paint", exact=True).click()
    tab.wait_for_selector("progress", timeout=60_000)
    begin = time.monotonic()
    tab.get_by_role("button", name="Stop", exact=True).click()
    tab.wait_for_selector("text=Nothing was painted.", timeout=10_000)
    assert time.monotonic() - begin < 5
    tab.wait_for_timeout(1500)
    assert tab.locator("text=Nothing was painted.").is_visible()  # nothing comes after it
    choose_steps(tab, 5)
    paint(tab)


def test_missing_pictures_are_named(tab, tmp_path):
    tab.get_by_role("button", name="Paint", exact=True).click()
    tab.wait_for_selector("text=there is no photo: add one", timeout=20_000)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    tab.set_input_files("#photo input[type=file]", tmp_path / "broken.png")
    tab.wait_for_selector("text=broken.png is not a picture that can be read", timeout=20_000)
    # gone once it is solved
    tab.locator("#examples button").first.click()
    tab.wait_for_selector("#canvas canvas")
    tab.wait_for_timeout(2000)
    assert "cannot be read" not in tab.inner_text("body") and "there is no photo" not in tab.inner_text("body")
    paint(tab)
    tab.wait_for_selector("text=Done.")


def test_the_banner_says_what_the_model_can_paint(tab):
    assert "miniature model" in tab.inner_text("#banner") and "--ckpt hub" in tab.inner_text("#banner")


def test_paint_is_within_reach_of_the_photo(tab):
    """It is on the screen with the photo and the reference alike, on a phone also with what is below them."""
    tab.set_input_files("#photo input[type=file]", PHOTO)
    tab.wait_for_selector("#canvas canvas")
    tab.wait_for_timeout(2000)
    button = tab.get_by_role("button", name="Paint", exact=True)
    size = tab.viewport_size
    for place in ("#canvas", "#reference", *(["#examples"] if size["width"] < 640 else [])):
        tab.locator(place).scroll_into_view_if_needed()
        box = button.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"]


def test_the_result_comes_into_view(tab):
    """The first one, too, which is put into the page when it is painted; on a phone it lies far below the photo."""
    tab.locator("#examples button").first.click()
    tab.wait_for_selector("#reference img")
    tab.evaluate("window.scrollTo(0, 0)")
    paint(tab)
    tab.wait_for_selector("text=Done.")
    tab.wait_for_timeout(2000)
    top = tab.locator("#compare img").first.bounding_box()["y"]
    assert -100 < top < tab.viewport_size["height"] / 2


def test_a_result_is_edited_further_and_found_again_in_the_history(tab, tmp_path):
    for name, words in (("Settings (also", "After an edit, its settings"), ("History", "After an edit, its pictures")):
        tab.get_by_role("button", name=name).click()
        tab.wait_for_selector(f"text={words}")
    tab.locator("#examples button").first.click()
    tab.wait_for_selector("#reference img")
    tab.wait_for_timeout(2000)
    paint(tab)
    first = download(tab, tmp_path)
    tab.locator("#further").click()
    tab.wait_for_selector("text=Brush over what is to be replaced")
    stroke(tab)
    paint(tab)
    tab.wait_for_selector("text=Done.")
    second = download(tab, tmp_path)
    assert second.name.startswith(first.stem) and second.name != first.name
    tab.wait_for_selector("#history .thumbnail-item >> nth=1")
    tab.locator("#history .thumbnail-item").nth(1).click()
    tab.wait_for_timeout(2000)
    again = download(tab, tmp_path)
    assert again.name == first.name


def test_a_click_marks_an_object_and_a_cut_out_reference_is_painted_there(tab, tmp_path):
    """On a plain photo whose object is known: click, the mask appears, cut out, paint."""
    photo = Image.new("RGB", (640, 480), (40, 140, 60))
    photo.paste((200, 30, 30), (200, 150, 360, 330))
    photo.save(tmp_path / "photo.png")
    tab.set_input_files("#photo input[type=file]", tmp_path / "photo.png")
    tab.wait_for_selector("#canvas canvas")
    tab.locator("#picking button").first.click()
    shown = tab.locator("#pick img")
    shown.wait_for(timeout=20_000)
    tab.wait_for_timeout(1500)
    shown.evaluate("picture => picture.scrollIntoView({block: 'center'})")  # on a phone the actions cover the end
    tab.wait_for_timeout(300)
    box = shown.bounding_box()
    tab.mouse.click(box["x"] + 280 / 640 * box["width"], box["y"] + 240 / 480 * box["height"])
    tab.wait_for_selector("text=The object is marked", timeout=30_000)
    tab.set_input_files("#reference input[type=file]", tmp_path / "photo.png")
    tab.wait_for_selector("#reference img")
    before = tab.locator("#reference img").get_attribute("src")
    tab.locator("#cut-out").click()
    tab.wait_for_function(f"document.querySelector('#reference img')?.src != {before!r}", timeout=30_000)
    paint(tab)
    picture = np.asarray(Image.open(download(tab, tmp_path)).convert("RGB")).astype(int)
    changed = (picture != np.asarray(photo)).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert np.abs(np.subtract(found, (200, 150, 360, 330))).max() <= 6, found
