"""The measurements of docs/methods.md, on two cases."""

import numpy as np
import pytest
from PIL import Image

from ldm.miniworld.neighbours import draw_case


def test_cases_know_their_outlines():
    one, again, other = draw_case(0), draw_case(0), draw_case(1)
    assert (one.outline == again.outline).all() and one.photo.tobytes() == again.photo.tobytes()
    assert one.photo.tobytes() != other.photo.tobytes()
    for case in (one, other):
        rows, columns = np.nonzero(case.outline)
        x0, y0, x1, y1 = case.box
        assert abs(columns.min() - x0) <= 1 and abs(columns.max() + 1 - x1) <= 1
        assert abs(rows.min() - y0) <= 1 and abs(rows.max() + 1 - y1) <= 1
        assert not (np.asarray(case.mask) > np.asarray(case.rough)).any()


@pytest.mark.parametrize("words", [["layout", "--ways", "plain", "--steps", 2], ["outline"], ["which", "--draws", 2]])
def test_each_is_a_table_and_a_picture(words, script, tmp_path):
    code, out, err = script("measure_methods", *words, "--cases", 2, "--outdir", tmp_path)
    assert code == 0, err
    assert out.count("±") >= 2 and "2 cases" in out
    assert Image.open(tmp_path / f"{words[0]}.jpg").height > 250
