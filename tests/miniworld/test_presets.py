"""Presets: their settings, their cost, and their comparison in the small world's table."""

from pathlib import Path

import numpy as np
import pytest

from ldm.editing.options import Sampling
from ldm.evaluation.benchmark import mean_interval
from ldm.evaluation.fid import Statistics
from ldm.evaluation.summary import CaseScores
from ldm.miniworld.presets import COMPARED, differences, evaluations, is_worse
from ldm.miniworld.table import Estimate, Row, Scored, resampled_fids
from ldm.models.diffusion.presets import PRESETS, Preset, resolve_preset
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError

SCHEDULE = NoiseSchedule.linear()


def test_what_is_chosen():
    assert resolve_preset() == Preset("plms", 50, None)
    assert resolve_preset(sampler="ddim", steps=7) == Preset("ddim", 7, None)
    assert all(resolve_preset(name) == preset for name, preset in PRESETS.items())
    for words in ({"steps": 50}, {"sampler": "plms"}):
        with pytest.raises(UserError, match=r"preset fast and .* contradict each other"):
            resolve_preset("fast", **words)
    with pytest.raises(UserError, match="preset 'slow' is unknown: use one of fast, draft"):
        resolve_preset("slow")


def test_what_they_cost():
    """PLMS evaluates its first step twice; guidance evaluates two branches. Of three steps without guidance and six
    with it, every other one of each kind is of a rectangle, the first is not."""
    assert evaluations(Preset("plms", 50), 5.0, SCHEDULE) == (102, 0)
    assert evaluations(Preset("plms", 50), 1.0, SCHEDULE) == (51, 0)
    assert evaluations(Preset("dpm++", 12), 5.0, SCHEDULE) == (24, 0)
    ddim = Preset("ddim", 10, (101, 601))  # 1, 101, ..., 901
    assert evaluations(ddim, 5.0, SCHEDULE) == (10 + 6, 0)
    assert evaluations(ddim._replace(refresh=2), 5.0, SCHEDULE) == (2 + 2 * 3, 2 + 2 * 3)
    draft, fast = (sum(evaluations(PRESETS[name], 5.0, SCHEDULE)) for name in ("draft", "fast"))
    assert draft < fast <= 102 / 4


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_sampler_steps_and_interval(edit, example, name):
    preset = PRESETS[name]
    words = {"height": 64, "width": 96, "progress": False}
    named = edit(**example, preset=name, **words)
    alike = edit(**example, sampler=preset.sampler, steps=preset.steps, **words)
    assert (named.tobytes() == alike.tobytes()) == (preset.interval is None)


def test_an_interval_has_a_beginning_and_an_end(edit, example):
    inputs = edit.prepare(**example, height=64, width=96)
    with pytest.raises(UserError, match=r"interval \(500, 200\)"):
        edit.sample(inputs, [321], Sampling(steps=2, interval=(500, 200)))


# ------------------------------------------------------------------------------------------- the comparison


def scored(noise, shift=0.0, seed=0):
    """Scores of 80 cases: each case has its own difficulty, shared by all rows, and a little noise."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(9).normal(0, 10, 80)
    cases = {key: hard + shift + rng.normal(0, noise, 80) for key in COMPARED}
    real, features = Statistics(), np.random.default_rng(9).normal(size=(80, 8)) + rng.normal(0, noise, (80, 8))
    real.add(np.random.default_rng(8).normal(size=(500, 8)))
    scores = {key: Estimate(float(values.mean()), 0.0, 0.0) for key, values in cases.items()}
    per_case = [CaseScores(str(i), {key: float(values[i]) for key, values in cases.items()}) for i in range(80)]
    return Scored(Row(scores, Path("results")), per_case, resampled_fids(features + shift, real))


def test_a_difference_is_of_pairs():
    """A row does not differ from itself; a shifted row differs by the shift. The more two rows have in common, the
    narrower is the interval."""
    reference = scored(0.1)
    for value in differences(reference, reference).values():
        assert value == Estimate(0, 0, 0)
    found = differences(scored(0.1, shift=0.5, seed=1), reference)
    low, high = mean_interval(np.array([case.values["shape"] for case in reference.cases]))
    for key, value in found.items():
        assert value.low < value.value < value.high, key
        if key != "fid_clip":
            assert value.value == pytest.approx(0.5, abs=0.05)
            assert value.high - value.low < (high - low) / 10
    apart = differences(scored(3.0, seed=1), reference)
    assert all(apart[key].high - apart[key].low > found[key].high - found[key].low for key in found)


@pytest.mark.parametrize(
    ("key", "value", "low", "high", "worse"),
    [
        ("shape", 0.5, -0.2, -0.1, True),
        ("shape", 0.5, -0.2, 0.1, False),
        ("shape", 0.5, 0.1, 0.2, False),
        ("fid_clip", 20, 0.1, 2, True),
        ("fid_clip", 20, -2, 0.1, False),
        ("seam", 1.3, 0.1, 0.2, True),
        ("seam", 1.3, -0.2, -0.1, False),
        ("seam", 0.8, -0.2, -0.1, True),
        ("seam", 0.8, 0.1, 0.2, False),
    ],
)
def test_what_is_worse_by_more_than_chance(key, value, low, high, worse):
    assert is_worse(key, value, Estimate((low + high) / 2, low, high)) == worse
