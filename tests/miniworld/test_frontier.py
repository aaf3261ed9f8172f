"""The plot of likeness against realism: where its points are, read back from the SVG."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ldm.miniworld.frontier import frontier
from ldm.miniworld.table import Estimate, Row

SVG = "{http://www.w3.org/2000/svg}"
PLACES = {  # name -> likeness, FID
    "plain, scale 2": (0.1, 12.0),
    "plain, scale 5": (0.3, 14.5),
    "<detail>, scale 5": (0.72, 7.0),
    "perfect edit": (0.9, 2.5),
}


def drawn(likeness):
    rows = {
        name: Row({likeness: Estimate(y, y - 0.04, y + 0.04), "fid_clip": Estimate(x, x - 1, x + 2)}, Path("results"))
        for name, (y, x) in PLACES.items()
    }
    return ElementTree.fromstring(frontier(rows))


@pytest.mark.parametrize("likeness", ["top1", "shape"])
def test_points_are_where_the_axes_say(likeness):
    """A line through two numbers of an axis gives the value at any place of it."""
    picture = drawn(likeness)
    texts = [(each.text, float(each.get("x", 0)), float(each.get("y", 0)), each.get("text-anchor")) for each in picture]
    numbers = {
        anchor: [t for t in texts if t[3] == anchor and t[0].replace(".", "").isdigit()] for anchor in ("middle", "end")
    }
    across = np.polyfit([x for _, x, _, _ in numbers["middle"]], [float(t) for t, *_ in numbers["middle"]], 1)
    up = np.polyfit([y - 4 for _, _, y, _ in numbers["end"]], [float(t) for t, *_ in numbers["end"]], 1)
    circles = picture.findall(f"{SVG}circle")
    found = [(np.polyval(up, float(c.get("cy"))), np.polyval(across, float(c.get("cx")))) for c in circles]
    np.testing.assert_allclose(found, list(PLACES.values()), atol=0.02)
    assert across[0] < 0 and up[0] < 0  # realistic is to the right, alike is up


def test_an_axis_of_zeros_goes_to_one():
    nothing = Row({"top1": Estimate(0, 0, 0), "fid_clip": Estimate(3, 2, 4)}, Path("results"))
    texts = [each.text for each in ElementTree.fromstring(frontier({"plain": nothing})).findall(f"{SVG}text")]
    assert {"0", "0.2", "1"} <= set(texts)


def test_models_are_lines_and_scales_are_named():
    picture = drawn("top1")
    lines = [len(each.get("points").split()) for each in picture.findall(f"{SVG}polyline")]
    assert lines == [2, 1, 1]  # a model with two scales, two points by themselves
    texts = [each.text for each in picture.findall(f"{SVG}text")]
    assert {"2", "5", "● plain", "● <detail>", "● perfect edit"} <= set(texts)
    assert "top-1 of 50 (more like the reference →)" in texts
