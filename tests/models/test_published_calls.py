"""Calls of the published code and its forks: samplers, apply_model, ema_scope, loading a state dict."""

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.util import UserError, instantiate_from_config


@pytest.fixture
def call(model):
    return {
        "S": 10,
        "batch_size": 2,
        "shape": [4, 8, 8],
        "conditioning": torch.randn(2, 1, 40),
        "verbose": False,
        "test_model_kwargs": {"inpaint_image": torch.randn(2, 4, 8, 8), "inpaint_mask": torch.ones(2, 1, 8, 8)},
        # published callers pass these, at values without effect
        "mask": None,
        "x0": None,
        "temperature": 1.0,
        "noise_dropout": 0.0,
        "quantize_x0": False,
        "score_corrector": None,
        "corrector_kwargs": None,
        "normals_sequence": None,
    }


@pytest.mark.parametrize("cls", [DDIMSampler, PLMSSampler])
def test_callbacks_and_intermediates(model, call, cls):
    seen, pictures = [], []
    samples, inter = cls(model, schedule="linear").sample(
        **call, callback=seen.append, img_callback=lambda x, i: pictures.append((i, x)), log_every_t=4
    )
    assert samples.shape == (2, 4, 8, 8)
    assert seen == list(range(10)) == [i for i, _ in pictures]
    assert len(inter["x_inter"]) == len(inter["pred_x0"]) == 1 + 4  # x_T; with 9, 8, 4 and 0 steps to go
    assert torch.equal(inter["x_inter"][-1], samples)
    assert torch.equal(inter["pred_x0"][-1], pictures[-1][1])


def test_a_generator_makes_a_noisy_sample_repeatable(model, call):
    runs = [
        DDIMSampler(model).sample(**call, eta=1.0, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_the_unconditional_vector_is_repeated_over_the_batch(model, call):
    x_T, v = torch.randn(2, 4, 8, 8), model.learnable_vector.detach()
    options = {"x_T": x_T, "unconditional_guidance_scale": 5.0}
    one, many = (
        DDIMSampler(model).sample(**call, **options, unconditional_conditioning=uc)[0] for uc in (v, v.repeat(2, 1, 1))
    )
    assert torch.equal(one, many)


def test_wrong_arguments_are_named(model, call):
    sampler = DDIMSampler(model)
    for change, words in (
        ({"temperature": 0.5}, "temperature=0.5 is not supported: leave it out"),
        ({"unheard_of": 1}, "unheard_of=1 is not supported: leave it out"),
        ({"test_model_kwargs": None}, "give inpaint_image and inpaint_mask"),
        (
            {"conditioning": torch.randn(2, 1, 48)},
            "conditioning is 48 wide, not 40: pass it through model.proj_out first",
        ),
        ({"shape": [4, 16, 16]}, r"inpaint_image is \(2, 4, 8, 8\), which does not fit shape \(4, 16, 16\)"),
    ):
        with pytest.raises(AssertionError, match=words):
            sampler.sample(**{**call, **change})
    with pytest.raises(AssertionError, match="'cosine'"):
        DDIMSampler(model, schedule="cosine")
    with pytest.raises(UserError, match="does not go with plms"):
        PLMSSampler(model).sample(**{**call, "eta": 0.5})


@torch.no_grad()
def test_contexts_as_lists_and_dicts(model):
    x, t, c = torch.randn(1, 9, 8, 8), torch.tensor([5]), torch.randn(1, 2, 40)
    plain = model.apply_model(x, t, c)
    with model.ema_scope("test"):
        assert torch.equal(model.apply_model(x, t, {"c_crossattn": [c]}), plain)
    assert torch.equal(model.apply_model(x, t, [c[:, :1], c[:, 1:]]), plain)


def test_a_lax_load_state_dict_finds_every_weight(model, golden_config):
    """As published code loads: build from the config, then load_state_dict(strict=False). No weight may be missed,
    whatever names the installed transformers has."""
    other = instantiate_from_config(golden_config["model"])
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert not missing and not unexpected
    reference = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.get_learned_conditioning(reference)
        torch.testing.assert_close(other.eval().get_learned_conditioning(reference), expected)
