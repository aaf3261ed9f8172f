"""Samplers against closed forms and diffusers, with one-line models."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from ldm.models.diffusion.denoiser import blended_eps
from ldm.models.diffusion.sampling import (
    DIFFUSERS_SAMPLERS,
    SAMPLERS,
    check_sampler,
    ddim_timesteps,
    diffusers_scheduler,
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
    abar = float(SCHEDULE.alphas_cumprod[t])
    return (1 - abar) ** 0.5 * (x - abar**0.5 * MEAN) / (abar * STD**2 + 1 - abar)


def gaussian_flow(x, t_from, abar_to):
    """Where the probability flow leads x: it stays the same number of standard deviations from the mean."""
    abar = SCHEDULE.alphas_cumprod[t_from]
    standard = (x - abar**0.5 * MEAN) / (abar * STD**2 + 1 - abar) ** 0.5
    return abar_to**0.5 * MEAN + (abar_to * STD**2 + 1 - abar_to) ** 0.5 * standard


def flow_error(name, steps):
    """Largest distance of a sampler's result from the probability flow's, relative to the largest value."""
    x_T = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []
    x = sample(name, gaussian_eps, x_T, SCHEDULE, steps, callback=seen.append)
    abar_end = (
        SCHEDULE.alphas_cumprod[0] if name not in DIFFUSERS_SAMPLERS else 1.0
    )  # diffusers' samplers end without noise
    expected = gaussian_flow(x_T, seen[0].t, abar_end)
    return ((x - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("name", "at_50", "ratio"), [("ddim", 0.05, 1.6), ("plms", 0.005, 3.5)])
def test_the_published_samplers_follow_the_exact_flow_of_a_gaussian(name, at_50, ratio):
    """And their errors shrink with the number of steps as their order says."""
    assert flow_error(name, 50) < at_50
    assert flow_error(name, 100) < flow_error(name, 50) / ratio


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_diffusers_samplers_follow_it_with_fewer_steps(name):
    """The error that remains comes from rounding timesteps to whole numbers."""
    errors = {steps: flow_error(name, steps) for steps in (12, 20, 100)}
    assert errors[12] < 0.05 and errors[20] < 0.01 and errors[100] < 0.003, errors


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_diffusers_steps_are_even_in_the_seventh_root_of_sigma(name):
    """Karras et al. 2022, equation 5; each timestep is the nearest to its sigma in log sigma. Few are even in t."""
    assert diffusers_scheduler(name, SCHEDULE, 5).timesteps.tolist() == [999, 799, 599, 399, 199]
    scheduler = diffusers_scheduler(name, SCHEDULE, 12)
    table = np.sqrt(1 / SCHEDULE.alphas_cumprod - 1)
    roots = np.linspace(table[-1] ** (1 / 7), table[0] ** (1 / 7), 12)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*roots**7, 0], rtol=1e-4)
    nearest = np.abs(np.log(table)[:, None] - np.log(roots**7)).argmin(axis=0)
    assert np.abs(scheduler.timesteps.numpy() - nearest).max() <= 1


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
        return torch.sin(3 * x) + 0.1 * x + t / 1000

    x_T = torch.randn(1, 4, 4, 4)
    theirs = x_T
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        theirs = scheduler.step(eps(theirs, int(t)), t, theirs).prev_sample
    assert (ours(eps, x_T, SCHEDULE, ddim_timesteps(steps)) - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_starts_from_the_noised_source(name):
    """Only the last steps are taken; from there x follows the probability flow of the Gaussian."""
    noise, source = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    for strength in (0.5, 0.303, 0.02):
        seen = []
        x = sample(name, gaussian_eps, noise, SCHEDULE, 200, callback=seen.append, source=source, strength=strength)
        assert len(seen) == seen[0].total and 0 < 1000 * strength - seen[0].t <= 12
        abar = SCHEDULE.alphas_cumprod[seen[0].t]
        start = abar**0.5 * source + (1 - abar) ** 0.5 * noise
        abar_end = SCHEDULE.alphas_cumprod[0] if name not in DIFFUSERS_SAMPLERS else 1.0
        assert (x - gaussian_flow(start, seen[0].t, abar_end)).abs().max() < 0.03 * start.abs().max()
    assert torch.equal(sample(name, gaussian_eps, noise, SCHEDULE, 10, source=source, strength=0.0), source)
    full = [sample(name, gaussian_eps, noise, SCHEDULE, 10, source=each) for each in (source, None)]
    assert torch.equal(*full)  # at strength 1 the source has no effect


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_blended_latents_keep_the_source_and_leave_the_rest_unchanged(name, strength):
    x_T, source = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    keep = torch.zeros(2, 1, 8, 8)
    keep[..., :4] = 1
    keep[..., 4] = 0.5  # partly to be painted
    seen = []
    eps = blended_eps(gaussian_eps, source, keep, SCHEDULE)
    options = {"source": source, "strength": strength}
    x = sample(name, eps, x_T, SCHEDULE, 20, callback=seen.append, **options)
    assert torch.equal(x[..., 4:], sample(name, gaussian_eps, x_T, SCHEDULE, 20, **options)[..., 4:])
    noise = x_T
    if strength == 1:
        abar = SCHEDULE.alphas_cumprod[seen[0].t]
        noise = (x_T - abar**0.5 * source) / (1 - abar) ** 0.5
    for before, after in pairwise(seen):  # q(x_t | source), with one and the same noise
        abar = SCHEDULE.alphas_cumprod[after.t]
        wanted = abar**0.5 * source + (1 - abar) ** 0.5 * noise
        torch.testing.assert_close(before.x[..., :4], wanted[..., :4], rtol=0, atol=1e-2)  # where t is rounded
        torch.testing.assert_close(after.pred_x0[..., :4], source[..., :4], rtol=0, atol=1e-2)
    abar = SCHEDULE.alphas_cumprod[0] if name not in DIFFUSERS_SAMPLERS else 1.0
    wanted = abar**0.5 * source + (1 - abar) ** 0.5 * noise
    torch.testing.assert_close(x[..., :4], wanted[..., :4], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callback_sees_every_step_and_can_end_the_sampling(name):
    steps = []
    x = sample(name, gaussian_eps, torch.randn(1, 4, 4, 4), SCHEDULE, 10, callback=steps.append)
    assert [step.index for step in steps] == list(range(10))
    assert {step.total for step in steps} == {10}
    assert torch.equal(steps[-1].x, x)
    assert all(a.t > b.t for a, b in pairwise(steps))
    # the first prediction from noise is the data's mean
    assert abs(steps[0].pred_x0.mean().item() - MEAN) < 0.2

    class Cancelled(Exception):
        pass

    def cancel(step):
        if step.index == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample(name, gaussian_eps, torch.randn(1, 4, 4, 4), SCHEDULE, 10, callback=cancel)


def test_noise_is_drawn_only_where_it_is_used():
    def noise():
        raise AssertionError("noise was drawn at eta 0")

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
        ("nosuch", 50, 0, "sampler 'nosuch' is unknown"),
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
