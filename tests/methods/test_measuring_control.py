"""The measurement of control in docs/methods.md: its outlines, and an adapter that is trained for moments."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from ldm.checkpoint import load_model
from ldm.editing.options import Sampling
from ldm.miniworld import control
from ldm.miniworld.identity import Identity
from ldm.miniworld.neighbours import draw_case
from ldm.miniworld.outlines import iou
from ldm.miniworld.scene import outlined_scene
from ldm.pipeline import PaintByExample
from tests.conftest import ROOT

CONFIG = ROOT / "configs/tiny.yaml"
RED = (1.0, 0.0, 0.0)


def test_lines_surround_the_object():
    inside = np.zeros((20, 30), bool)
    inside[5:15, 8:25] = True
    edge = np.asarray(control.lines(inside)) > 127
    expected = np.zeros_like(inside)
    expected[4:16, 7:26] = True
    expected[6:14, 9:24] = False
    assert (edge == expected).all()


def test_an_object_in_another_pose(monkeypatch):
    """A circle's area is known; what a scene renders, leaning a little, is nearly what its angle says."""
    circle = control.posed(Identity("circle", "solid", RED, RED), 0, (20, 30, 80, 120))
    diameter = 60 * (1 - 2 * control.MARGIN)
    assert circle.sum() == pytest.approx(np.pi / 4 * diameter**2, rel=0.03)
    assert np.argwhere(circle).mean(axis=0) == pytest.approx((74.5, 49.5), abs=0.6)
    monkeypatch.setattr(control, "MARGIN", 0)
    overlaps = []
    for number in range(12):
        for thing, shown in outlined_scene(number, (128, 128))[1]:
            if thing.seen == 1 and thing.identity.shape in ("arrow", "bolt", "drop") and abs(thing.angle) > 15:
                turned = (control.posed(thing.identity, sign * thing.angle, thing.box) for sign in (1, -1))
                overlaps.append([iou(255 * each.astype(np.uint8), shown) for each in turned])
    right, mirrored = np.mean(overlaps, axis=0)
    assert len(overlaps) > 2 and right > 0.75 and mirrored < right - 0.2


def test_samples_are_of_training_and_know_their_outline():
    for sample in islice(control.draw_samples(), 6):
        edge, keep = sample["control"] > 127, sample["inpaint_mask"] > 0.5
        assert edge.shape == keep.shape and sample["GT"].shape == (3, *edge.shape[1:])
        assert edge.sum() > 50 and (edge & ~keep).sum() > 0.7 * edge.sum()


def test_training_and_measuring(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "SAMPLING", Sampling(sampler="ddim", steps=1))
    model = load_model(CONFIG, tiny)
    encoded = control.encode_samples(model, 3)
    assert encoded["gt_moments"].shape == (3, 8, 16, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = control.new_adapter(model)
    control.train_adapter(adapter, model, encoded, 0.005)
    adapter.save_pretrained(tmp_path)
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    edit = PaintByExample.load(CONFIG, tiny, "cpu", control=tmp_path)
    cases = [replace(case, outline=control.another_pose(case)) for case in map(draw_case, range(2))]
    plain, controlled = (control.paint(edit, cases, scale) for scale in (0, 1))
    assert plain[0].size == (128, 128) and plain[0].tobytes() != controlled[0].tobytes()
