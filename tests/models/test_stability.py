"""Up to which guidance scale a sampler is stable, and who is told."""

import json
import math
import warnings
from pathlib import Path

import pytest

from ldm.editing.options import Sampling
from ldm.miniworld.solvers import SCALES
from ldm.models.diffusion.presets import PRESETS
from ldm.models.diffusion.sampling import SAMPLERS
from ldm.models.diffusion.stability import LARGEST_SCALE, STABLE_SCALES, stability_note, stable_scale
from ldm.util import UserNote

ROOT = Path(__file__).resolve().parents[2]


def test_the_scales_are_those_that_were_measured():
    measured = json.loads((ROOT / "docs/solvers.json").read_text())
    assert tuple(measured["scales"]) == SCALES and max(SCALES) == LARGEST_SCALE
    for sampler in SAMPLERS:
        for row, limit in measured["stable_scale"].items():
            name, steps = row.split()
            if name == sampler:
                assert min(stable_scale(name, int(steps)), LARGEST_SCALE) == limit, row
    assert set(STABLE_SCALES) == set(SAMPLERS)


def test_between_measured_numbers_of_steps_the_smaller_counts():
    few, more = sorted(STABLE_SCALES["plms"])[:2]
    assert stable_scale("plms", more - 1) == stable_scale("plms", few) == stable_scale("plms", 1)
    assert stable_scale("ddim", 1000) == math.inf


def test_a_scale_that_is_too_large_is_told_and_taken():
    limit = stable_scale("plms", 25)
    assert stability_note("plms", 25, limit) is None
    with pytest.warns(UserNote, match=rf"too large for 25 steps of plms.*use a scale of at most {limit:g}, more"):
        assert Sampling.choose(sampler="plms", steps=25, scale=limit + 1).scale == limit + 1


@pytest.mark.parametrize("how", [{}, *({"preset": name} for name in PRESETS)], ids=["published", *PRESETS])
def test_what_is_recommended_is_stable(how):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampling.choose(scale=5.0, **how)
