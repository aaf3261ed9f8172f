"""Samplers against closed forms and diffusers, with one-line models."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from ldm.models.diffusion.sampling import (
    SAMPLERS,
    check_sampler,
    ddim_timesteps,
    sample,
    sample_ddim,
    sample_plms,
)
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError

SCHEDULE = NoiseSchedule.linear()
MEAN, STD = 0.7, 0.4


def gaussian_eps(x, t):
    """The exact eps of data N(MEAN, STD^2): -sqrt(1 - abar) times the score of q(x_t)."""
    abar = torch.from_numpy(SCHEDULE.alphas_cumprod)[t].view(-1, 1, 1, 1).to(x.dtype)
    variance = abar * STD**2 + 1 - abar
    return (1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / variance


def gaussian_flow(x, t_from, abar_to):
    """Where the probability flow leads x: the same number of standard deviations from the mean."""
    abar = SCHEDULE.alphas_cumprod[t_from]
    standard = (x - abar**0.5 * MEAN) / (abar * STD**2 + 1 - abar) ** 0.5
    return abar_to**0.5 * MEAN + (abar_to * STD**2 + 1 - abar_to) ** 0.5 * standard


def flow_error(name, steps):
    """Largest distance from where the probability flow leads, relative to the largest value."""
    x_T = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []
    x = sample(name, gaussian_eps, x_T, SCHEDULE, steps, callback=seen.append)
    abar_end = SCHEDULE.alphas_cumprod[0] if name in ("ddim", "plms") else 1.0  # diffusers' go down to no noise
    expected = gaussian_flow(x_T, seen[0].t, abar_end)
    return ((x - expected).abs().max() / expected.abs().max()).item()


# the error is that of the order: one for DDIM, and for the last step, to no noise at all, of diffusers' solvers
@pytest.mark.parametrize(
    ("name", "at_50", "ratio"), [("ddim", 0.05, 1.6), ("plms", 0.005, 3.5), ("dpm++", 0.05, 1.6), ("unipc", 0.05, 1.6)]
)
def test_every_sampler_follows_the_exact_flow_of_a_gaussian(name, at_50, ratio):
    assert flow_error(name, 50) < at_50
    assert flow_error(name, 100) < flow_error(name, 50) / ratio


def test_ddim_at_eta_1_samples_the_distribution():
    x = sample("ddim", gaussian_eps, torch.randn(64, 4, 16, 16), SCHEDULE, 200, eta=1.0)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("ours", [sample_ddim, sample_plms], ids=["ddim", "plms"])
def test_equal_to_diffusers_schedulers(ours, steps):
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    if ours is sample_ddim:
        scheduler = DDIMScheduler(**options, clip_sample=False)
    else:
        scheduler = PNDMScheduler(**options, skip_prk_steps=True)

    def eps(x, t):
        return torch.sin(3 * x) + 0.1 * x + (t / 1000).view(-1, 1, 1, 1)

    x_T = torch.randn(1, 4, 4, 4)
    theirs = x_T
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        theirs = scheduler.step(eps(theirs, t[None]), t, theirs).prev_sample
    assert (ours(eps, x_T, SCHEDULE, ddim_timesteps(steps)) - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callback_sees_every_step_and_can_end_the_sampling(name):
    steps = []
    x = sample(name, gaussian_eps, torch.randn(1, 4, 4, 4), SCHEDULE, 10, callback=steps.append)
    assert [step.index for step in steps] == list(range(10))
    assert {step.total for step in steps} == {10}
    assert torch.equal(steps[-1].x, x)
    assert all(a.t > b.t for a, b in pairwise(steps))
    # the data's mean is what noise is cleaned towards
    assert abs(steps[0].pred_x0.mean().item() - MEAN) < 0.2

    class Cancelled(Exception):
        pass

    def cancel(step):
        if step.index == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample(name, gaussian_eps, torch.randn(1, 4, 4, 4), SCHEDULE, 10, callback=cancel)


def test_noise_is_asked_for_only_where_it_is_used():
    def noise():
        raise AssertionError("asked for noise at eta 0")

    timesteps = ddim_timesteps(5)
    sample_ddim(gaussian_eps, torch.zeros(1, 4, 2, 2), SCHEDULE, timesteps, 0.0, noise)
    draws = []
    sample_ddim(
        gaussian_eps, torch.zeros(1, 4, 2, 2), SCHEDULE, timesteps, 0.5, lambda: draws.append(0) or torch.zeros(1)
    )
    assert len(draws) == 5


@pytest.mark.parametrize(
    ("name", "steps", "eta", "words"),
    [
        ("euler", 50, 0, "sampler 'euler' is unknown"),
        ("plms", 0, 0, "0 sampling steps"),
        ("plms", 1000, 0, "1000 sampling steps"),
        ("plms", 50, 0.5, "eta 0.5 does not go with plms"),
        ("ddim", 50, 1.5, "eta 1.5"),
        ("ddim", 50, float("nan"), "eta nan"),
    ],
)
def test_requests_out_of_range(name, steps, eta, words):
    with pytest.raises(UserError, match=words):
        check_sampler(name, steps, eta, 1000)


def test_the_schedule_is_linear_in_the_square_root_of_beta():
    steps = np.diff(np.sqrt(SCHEDULE.betas))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    assert SCHEDULE.betas[0] == pytest.approx(0.00085) and SCHEDULE.betas[-1] == pytest.approx(0.012)
