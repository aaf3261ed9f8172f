"""The diffusion classifier against closed forms, and on the miniature model."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import sem

from ldm.methods import classifier
from ldm.methods.classifier import FIRST_ROUND, INTERVAL, draw, noise_errors, rank, rounds
from ldm.models.diffusion.schedule import NoiseSchedule
from tests.conftest import ROOT

SCHEDULE = NoiseSchedule.linear()
MINI = ROOT / "examples/mini"


def point_denoiser(inpaint, contexts):
    """Under the token c all data are the picture c everywhere: eps = (x - sqrt(abar) c) / sqrt(1 - abar)."""

    def eps(x, t):
        abar = float(SCHEDULE.alphas_cumprod[t])
        return (x - abar**0.5 * contexts[:, :, None]) / (1 - abar) ** 0.5

    return eps


def test_the_errors_are_those_of_the_closed_form():
    """abar / (1 - abar) (x_0 - c)^2, whatever the noise, and nothing of it from outside the region."""
    inpaint = torch.ones(1, 5, 6, 6)
    inpaint[:, -1, 1:4, 2:5] = 0
    source = torch.where(inpaint[:, -1:] < 1, 0.5, 77.0).expand(1, 4, 6, 6).double()
    tokens = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None, None]
    errors = noise_errors(point_denoiser, inpaint, tokens, source, SCHEDULE)(range(20), [0, 1, 5])
    for row, number in zip(errors, (0, 1, 5), strict=True):
        abar = SCHEDULE.alphas_cumprod[draw(number, (4, 6, 6))[0]]
        assert np.allclose(row, abar / (1 - abar) * (0.5 - tokens.flatten().numpy()) ** 2, rtol=1e-5)
    ranking = rank(noise_errors(point_denoiser, inpaint, tokens, source, SCHEDULE), 20, 32)
    distance = np.abs(0.5 - tokens.flatten().numpy())
    assert [each.candidate for each in ranking][:8] == np.argsort(distance, kind="stable")[:8].tolist()


def test_draws_fill_the_interval_evenly():
    timesteps = sorted(draw(number, (4, 2, 2))[0] for number in range(16))
    assert np.allclose(np.diff(timesteps), (INTERVAL[1] - INTERVAL[0]) / 16, atol=1)
    assert not torch.equal(draw(0, (4, 2, 2))[1], draw(0, (4, 2, 2), seed=1)[1])


def test_halving_asks_fewer_and_fewer():
    noise, asked = np.random.default_rng(0).normal(size=(64, 12)), []
    means = np.linspace(0, 3, 12)[::-1]

    def errors(candidates, draws):
        asked.append((len(candidates), len(draws)))
        return (means + 0.5 * noise)[np.ix_(list(draws), candidates)]

    ranking = rank(errors, 12, 64)
    assert asked == [(12, 4), (6, 4), (3, 8), (2, 16), (2, 32)]
    assert sorted(each.candidate for each in ranking) == list(range(12))
    first, second, *_, last = ranking
    assert (first.candidate, second.candidate, first.draws, last.draws) == (11, 10, 64, FIRST_ROUND)
    difference = (means + 0.5 * noise)[:, 10] - (means + 0.5 * noise)[:, 11]
    assert second.behind == pytest.approx(difference.mean())
    assert second.standard_error == pytest.approx(sem(difference))


@pytest.mark.parametrize(("candidates", "draws"), [(2, 2), (3, 5), (72, 32), (5, 4)])
def test_rounds_end_with_all_draws(candidates, draws):
    *_, (seen, left) = rounds(candidates, draws)
    assert (seen, left) == (draws, 1)


def test_the_command_finds_the_region_s_own_crop(script, tmp_path):
    name = "000000000012"
    photo, mask = MINI / f"GT_3500/{name}_GT.png", MINI / f"Mask_bbox_3500/{name}_mask.png"
    with Image.open(photo) as picture, Image.open(mask) as white:
        picture.crop(white.getbbox()).save(tmp_path / "own.png")
    others = sorted((MINI / "Ref_3500").glob("*.png"))[:5]
    code, out, err = script("which_reference", photo, mask, *others, tmp_path / "own.png", "--draws", 8,
                            "--output", tmp_path / "out/it.png", "--device", "cpu")  # fmt: skip
    assert code == 0, err
    rows = [line for line in out.splitlines() if ".png |" in line]
    assert len(rows) == 6 and "own.png" in rows[0] and "±" in rows[1]
    assert Image.open(tmp_path / "out/it.png").width > 500


def test_one_reference_has_nothing_to_be_compared_with(script):
    code, _, err = script("which_reference", "photo.png", "mask.png", "one.png")
    assert code == 2 and "give two or more" in err


def test_large_racks_are_asked_in_groups(monkeypatch):
    inpaint, source = torch.zeros(1, 5, 4, 4), torch.zeros(1, 4, 4, 4)
    tokens = torch.linspace(-1, 1, 10)[:, None, None]
    ask = noise_errors(point_denoiser, inpaint, tokens, source, SCHEDULE)
    whole = ask([9, 2, 4, 0, 1], [3])
    monkeypatch.setattr(classifier, "BATCH_SIZE", 2)
    assert np.allclose(ask([9, 2, 4, 0, 1], [3]), whole)
