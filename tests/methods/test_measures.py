"""The measurements of docs/methods.md, on two small cases with few steps."""

import numpy as np
import pytest

from ldm.editing.options import Sampling
from ldm.miniworld import several
from ldm.miniworld.scores import load_oracle
from ldm.util import shipped


@pytest.fixture
def oracle():
    return load_oracle(shipped("pretrained_models/mini_oracle.safetensors"))


def test_two_objects_at_once(edit, oracle, monkeypatch):
    monkeypatch.setattr(several, "SAMPLING", Sampling(sampler="ddim", steps=1))
    monkeypatch.setattr(several, "WAYS", {"together": several.WAYS["together"]})
    cases = [several.draw_case(number) for number in range(2)]
    for case in cases:
        (ax, ay, bx, by), (cx, cy, dx, dy) = case.boxes
        assert ax >= dx or cx >= bx or ay >= dy or cy >= by  # beside each other
    ways = list(several.measure(edit, oracle, cases))
    assert [way.name for way in ways] == list(several.WAYS)
    for way in ways:
        assert [picture.size for picture in way.pictures] == [several.SIZE] * 2
        assert list(way.scores) == list(several.COLUMNS)
        assert all(low <= value <= high for value, low, high in way.scores.values())
    unchanged = several._scores(oracle, cases, [case.photo for case in cases])
    assert unchanged["seam"].mean() < 1.5 and np.isfinite(unchanged["colour error"]).all()
