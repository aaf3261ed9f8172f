"""Inversion: the way back is exact where it must be, and follows the probability flow where it is one."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.editing.inputs import Inputs
from ldm.editing.metadata import read_settings
from ldm.editing.options import KEEP_LAYOUT, Sampling
from ldm.methods.inversion import ddim_inversion, ddpm_inversion, null_vectors
from ldm.methods.keep_layout import kept_timesteps, sample_keeping_layout
from ldm.methods.source import own_reference
from ldm.models.diffusion.sampling import ddim_timesteps, sample_ddim
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.pipeline import PaintByExample
from ldm.util import UserError
from tests.conftest import ROOT
from tests.models.test_sampling import gaussian_eps, gaussian_flow

SCHEDULE = NoiseSchedule.linear()
STEPS = ddim_timesteps(50).tolist()


def latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def crooked_eps(x, t):
    """No model of anything: the inversion must not depend on its being right."""
    return torch.sin(3 * x) + t / 1000


def test_ddpm_inversion_leads_back_by_any_eps_and_by_diffusers_steps():
    scheduler_options = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    for eps in (crooked_eps, gaussian_eps):
        source, noises = latent(), iter(latent(seed) for seed in range(1, 99))
        x, z = ddpm_inversion(eps, source, SCHEDULE, STEPS, lambda noises=noises: next(noises))
        assert x.std() > 0.9 and len(z) == 50
        back = sample_ddim(eps, x, SCHEDULE, STEPS, eta=1.0, noise=iter(z).__next__)
        assert torch.allclose(back, source, atol=1e-9)
    scheduler = DDIMScheduler(trained_betas=SCHEDULE.betas, timestep_spacing="leading", **scheduler_options)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == STEPS[::-1]
    for t, noise in zip(scheduler.timesteps, z, strict=True):
        x = scheduler.step(gaussian_eps(x, int(t)), t, x, eta=1.0, variance_noise=noise).prev_sample
    assert torch.allclose(x, source, atol=1e-4)  # diffusers keeps alpha-bar in float32


def test_ddim_inversion_follows_the_exact_flow_of_a_gaussian():
    source = latent()

    def error(steps: int) -> float:
        timesteps = ddim_timesteps(steps).tolist()
        x = ddim_inversion(gaussian_eps, source, SCHEDULE, timesteps)[-1]
        back = gaussian_flow(x, timesteps[-1], float(SCHEDULE.alphas_cumprod[0]))
        return ((back - source).abs().max() / source.abs().max()).item()

    assert error(50) < 0.02 and error(200) < error(50) / 2


def test_null_vectors_lead_back_along_the_path_under_guidance():
    """A toy whose guided eps is right only at v = 0.03."""
    weight = torch.randn(3, 4 * 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def eps_of(v):
        return lambda x, t: gaussian_eps(x, t) + ((v[:, 0] - 0.03) @ weight).view_as(x)

    timesteps = ddim_timesteps(20).tolist()
    path = [latent()]
    sample_ddim(gaussian_eps, path[0], SCHEDULE, timesteps, callback=lambda step: path.insert(0, step.x))
    v = torch.zeros(2, 1, 3, dtype=torch.float64)
    found = null_vectors(eps_of, v, path, SCHEDULE, timesteps)

    def error(eps):
        return (sample_ddim(eps, path[-1], SCHEDULE, timesteps) - path[0]).square().mean().item()

    assert list(found) == timesteps[::-1]
    assert error(lambda x, t: eps_of(found[t])(x, t)) < 0.1 * error(eps_of(v))


def test_keep_leaves_out_the_noisiest_steps():
    assert kept_timesteps(50, 0.0, 1000) == STEPS
    assert kept_timesteps(50, 0.6, 1000) == STEPS[:20]
    assert kept_timesteps(50, 0.999, 1000) == STEPS[:1]


@pytest.mark.parametrize(("method", "scale", "stages"), [("ddpm", 5.0, 2), ("ddim", 1.0, 2), ("ddim", 5.0, 3)])
def test_progress_counts_the_inversion_and_can_end_it(method, scale, stages):
    """Stages of 8 steps: inversion, vectors where there is guidance, sampling."""
    tokens = tuple(torch.zeros(2, 1, 3, dtype=torch.float64) for _ in range(3))
    seen = []

    def eps_of(c, v, scale, plain=False):
        return lambda x, t: gaussian_eps(x, t) + v.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    def run(callback):
        numbers = (10, 0.2, scale, lambda: latent(1))
        sample_keeping_layout(method, eps_of, tokens, latent(), SCHEDULE, *numbers, None, callback)

    run(seen.append)
    assert [(step.index, step.total) for step in seen] == [(i, 8 * stages) for i in range(8 * stages)]
    assert all(step.x.shape == step.pred_x0.shape == latent().shape for step in seen)
    ended = []

    def end(step):
        ended.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(end)
    assert len(ended) == 1


@pytest.fixture(scope="module")
def mini() -> PaintByExample:
    return PaintByExample.load(MINI_CONFIG, MINI_CKPT, device="cpu")


@pytest.fixture(scope="module")
def own_crop(mini) -> Inputs:
    """A case of the small world with the region's own crop as its reference."""
    name = np.load(ROOT / "examples/mini/id_list.npy")[0]
    photo, mask = (
        Image.open(ROOT / f"examples/mini/{folder}/{name:012}_{kind}.png")
        for folder, kind in (("GT_3500", "GT"), ("Mask_bbox_3500", "mask"))
    )
    inputs = mini.prepare(photo, mask, photo)
    reference = own_reference(inputs.image, inputs.mask, mini.model.cond_stage_model.image_size)
    return Inputs(inputs.image, inputs.mask, reference)


def region_psnr(inputs: Inputs, picture: torch.Tensor) -> float:
    paint = (inputs.mask < 1).expand_as(picture)
    return float(-10 * torch.log10((picture.clamp(-1, 1) - inputs.image)[paint].square().mean() / 4))


@pytest.mark.parametrize(
    "how",
    [
        {"keep_layout": "ddpm", "keep": 0.5, "scale": 5.0},
        {"keep_layout": "ddim", "keep": 0.0, "scale": 1.0},
    ],
)
def test_with_its_own_token_the_photo_comes_back(mini, own_crop, how):
    """Within 1 dB of what the autoencoder can do, at 50 steps."""
    with torch.no_grad():
        best = region_psnr(own_crop, mini.model.first_stage_model.reconstruct(own_crop.image))
    painted = mini.sample(own_crop, [3], Sampling(sampler="ddim", steps=50, **how), progress=False)
    assert region_psnr(own_crop, painted) > best - 1.0


def test_the_own_crop_is_the_region_alone():
    image, mask = torch.full((1, 3, 32, 32), -1.0), torch.ones(1, 1, 32, 32)
    image[..., 8:16, 4:20], mask[..., 8:16, 4:20] = 1.0, 0.0
    white = own_reference(image, mask, 14)
    assert white.shape == (1, 3, 14, 14) and (white == white[..., :1, :1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_layout": "ddpm", "strength": 0.5}, "keep_layout and strength 0.5 are two ways to keep the layout"),
        ({"keep_layout": "ddpm", "preset": "fast"}, "leave out preset, sampler and eta"),
        ({"keep_layout": "ddpm", "sampler": "plms"}, "keep_layout samples by ddim, not by plms"),
        ({"keep_layout": "ddim", "sampler": "ddim", "eta": 1.0}, "leave out preset, sampler and eta"),
        ({"keep_layout": "ddpm", "keep": 1.5}, "keep 1.5 is out of range: use 0"),
        ({"keep": 0.5}, "keep 0.5 does nothing by itself"),
        ({"keep_layout": "p2p"}, "keep_layout 'p2p' is unknown: use one of ddpm, ddim, pnp"),
    ],
)
def test_contradictions_are_said(options, words):
    with pytest.raises(UserError, match=words):
        Sampling.choose(**options)


def test_what_is_left_out_has_a_default():
    sampling = Sampling.choose(keep_layout="ddpm")
    assert (sampling.sampler, sampling.steps, sampling.keep) == ("ddim", 50, KEEP_LAYOUT["ddpm"])
    assert Sampling(keep_layout="ddim").sampler == "ddim" and Sampling().keep is None


def test_flags(edit_example, tiny, tmp_path):
    code, _, err = edit_example(tmp_path, tiny, "--keep_layout", "ddpm", "--strength", 0.5)
    assert code == 2 and "two ways to keep the layout" in err
    code, _, err = edit_example(tmp_path, tiny, "--keep_layout", "ddpm", "--keep", 0.5)
    assert code == 0, err
    settings = read_settings(tmp_path / "results/example_2_321.png")
    assert (settings["keep_layout"], settings["keep"], settings["sampler"]) == ("ddpm", 0.5, "ddim")
