"""The measurements of docs/methods.md, on two cases."""

from dataclasses import asdict
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.cli.learn_object import RATES
from ldm.editing.options import Sampling
from ldm.methods.learn_token import Learning
from ldm.miniworld import large, learned
from ldm.miniworld.crops import labels_of
from ldm.miniworld.directions import ATTRIBUTES, direction_scores, draw_directed
from ldm.miniworld.identity import HELD_OUT
from ldm.miniworld.neighbours import draw_case
from ldm.pipeline import PaintByExample
from ldm.training.objects import look_at


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


@pytest.mark.parametrize(
    "words",
    [
        ["layout", "--ways", "plain", "--steps", 2],
        ["outline"],
        ["which", "--draws", 2],
        ["windows"],
        ["direction", "--steps", 1],
        ["learn", "--ways", "1 picture", "token, 1", "--learning_steps", 1],
    ],
)
def test_each_is_a_table_and_a_picture(words, script, tmp_path, monkeypatch):
    monkeypatch.setattr(learned, "PHOTOS", 1)
    monkeypatch.setattr(learned, "SAMPLING", Sampling(sampler="ddim", steps=1))
    monkeypatch.setattr(large, "SAMPLING", {"sampler": "ddim", "steps": 4, "progress": False})
    code, out, err = script("measure_methods", *words, "--cases", 2, "--outdir", tmp_path)
    assert code == 0, err
    assert out.count("±") >= 2 and "2 cases" in out
    assert Image.open(tmp_path / f"{words[0]}.jpg").height > 250


def test_a_direction_differs_in_one_attribute_which_the_reference_shares():
    for number, attribute in enumerate(ATTRIBUTES):
        case = draw_directed(number)
        assert case.attribute == attribute and draw_directed(number).identities == case.identities
        c, a, b, wanted = (case.identities[name] for name in ("c", "a", "b", "wanted"))
        for name in ("shape", "pattern", "colour", "second"):
            values = [getattr(each, name) for each in (c, a, b, wanted)]
            together = [values[0] == values[1], values[0] == values[2], values[0] == values[3]]
            assert together == ([True, False, False] if name == attribute else [False, False, True])


def test_an_answer_that_is_wanted_has_full_marks():
    cases = [draw_directed(number) for number in range(3)]
    answers = torch.cat([_answer(case.identities["wanted"]) for case in cases])
    oracle = Mock(return_value=answers)
    right = direction_scores(oracle, cases, [case.photo for case in cases])
    assert right["moves"].tolist() == right["rest stays"].tolist() == [1, 1, 1] and right["colour error"].max() < 1e-3
    oracle.return_value = torch.cat([_answer(case.identities["c"]) for case in cases])
    assert direction_scores(oracle, cases, [case.photo for case in cases])["moves"].tolist() == [0, 0, 0]


def _answer(identity):
    """What an oracle says that is right."""
    labels = labels_of(asdict(identity))
    parts = F.one_hot(torch.tensor(labels.shape), 12), F.one_hot(torch.tensor(labels.pattern), 6)
    return torch.cat([*parts, torch.from_numpy(labels.colours).flatten()])[None]


def test_things_are_of_every_pair_that_was_held_out():
    things = [learned.draw_thing(number) for number in range(len(HELD_OUT))]
    assert {(thing.identity.shape, thing.identity.pattern) for thing in things} == HELD_OUT
    assert things[0].identity == learned.draw_thing(0).identity
    for thing in things[:2]:
        assert len({picture.tobytes() for picture in thing.pictures}) == learned.PICTURES == len(thing.regions)
        assert len(thing.prior) == learned.PRIOR and len(thing.cases) == learned.PHOTOS


def test_an_adapter_paints_with_what_it_learned_and_the_model_stays():
    """Adam's first step is as long as its rate, wherever the gradient is not nearly 0."""
    edit, thing, rate = PaintByExample.load(MINI_CONFIG, MINI_CKPT), learned.draw_thing(0), RATES["v"]
    before = {name: tensor.clone() for name, tensor in edit.model.state_dict().items()}
    seen = look_at(edit, thing.pictures[:1], thing.regions[:1])
    painter, token = learned._learned(edit, seen, learned.Way(1, "v"), thing, Learning(1, rate=rate))
    after = painter.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in edit.model.state_dict().items())
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("attn2.to_v.weight")}
    for name in changed:
        step = (after[name] - before[name]).abs()
        assert step.max() < 1.001 * rate and step.median() > 0.9 * rate
    assert torch.equal(token, seen.start(edit).token)
