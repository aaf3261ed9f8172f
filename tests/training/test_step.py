"""A training step: guidance drop, gradients, averaged weights, compilation."""

import numpy as np
import pytest
import torch

from ldm.checkpoint import load_model
from ldm.models.diffusion.conditioning import reference_token, unconditional_token
from ldm.models.diffusion.draws import Draws
from ldm.modules.ema import LitEma
from ldm.util import UserError
from tests.conftest import GOLDEN


def test_draws_depend_on_the_sample_alone():
    alone = [Draws.from_seeds([(1, 2, i)], (4, 6, 8), 1000, "cpu") for i in range(5)]
    together = Draws.from_seeds([(1, 2, i) for i in range(5)], (4, 6, 8), 1000, "cpu")
    for name in ("noise_gt", "noise_inpaint", "t", "noise", "uniform"):
        assert torch.equal(torch.cat([getattr(draws, name) for draws in alone]), getattr(together, name))
    many = Draws.from_seeds([(0, i) for i in range(3000)], (4, 1, 1), 1000, "cpu")
    for normal in (many.noise_gt, many.noise_inpaint, many.noise):
        assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert abs(many.t.float().mean() - 499.5) < 25 and many.t.min() < 10 and many.t.max() > 989
    assert abs((many.uniform < 0.2).float().mean() - 0.2) < 0.035
    assert abs(np.corrcoef(many.noise[:, 0, 0, 0], many.noise_gt[:, 0, 0, 0])[0, 1]) < 0.1


def golden_batch(golden):
    g = golden("batch")
    return {key: g[f"in/{key}"] for key in ("GT", "inpaint_image", "inpaint_mask")} | {"ref_imgs": g["in/ref_imgs"]}


@pytest.mark.parametrize(("kind", "uniform", "dropped"), [
    ("sample", (0.1, 0.9), (True, False)),
    ("sample", (0.9, 0.1), (False, True)),
    ("batch", (0.1, 0.9), (True, True)),
    ("batch", (0.9, 0.1), (False, False)),
])  # fmt: skip
def test_guidance_drop(model, golden, kind, uniform, dropped, monkeypatch):
    """The condition is dropped per sample or, as published, for the whole batch. The expected loss is computed from
    contexts that the test puts together."""
    batch = golden_batch(golden)
    draws = Draws.from_seeds([(0,), (1,)], (4, 8, 8), 1000, "cpu")
    draws = Draws(draws.noise_gt, draws.noise_inpaint, draws.t, draws.noise, torch.tensor(uniform))
    monkeypatch.setattr(model, "u_cond_drop", kind)
    loss, _ = model.batch_loss(batch, draws, 0.2)
    c, v = reference_token(model, batch["ref_imgs"]), unconditional_token(model, 2)
    context = torch.stack([v[i] if dropped[i] else c[i] for i in range(2)])
    x_start = model.get_input(batch, noise=draws.noise_gt, noise_inpaint=draws.noise_inpaint)
    torch.testing.assert_close(loss, model.p_losses(x_start, context, draws.t, draws.noise)[0])


@pytest.mark.parametrize("gamma", [None, 5])
@pytest.mark.parametrize("background", [1, 0.2])
def test_weights_of_the_loss(model, golden, gamma, background, monkeypatch):
    """Against the formulas, in NumPy: of each sample, the weighted mean of its squared errors times
    min(SNR, 5) / SNR, with the SNR of Stable Diffusion's noise schedule."""
    batch = golden_batch(golden)
    t = torch.tensor([700, 20])  # SNR 0.08 and 49
    draws = Draws.from_seeds([(0,), (1,)], (4, 8, 8), 1000, "cpu")
    x_start = model.get_input(batch, noise=draws.noise_gt, noise_inpaint=draws.noise_inpaint)
    c = reference_token(model, batch["ref_imgs"])
    monkeypatch.setattr(model, "min_snr_gamma", gamma)
    monkeypatch.setattr(model, "background_weight", background)
    loss, logged = model.p_losses(x_start, c, t, draws.noise)

    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[t]
    snr = alphas_cumprod / (1 - alphas_cumprod)
    x = torch.cat([model.q_sample(x_start[:, :4], t, draws.noise), x_start[:, 4:]], dim=1)
    squared = ((model.apply_model(x, t, c) - draws.noise) ** 2).detach().numpy()
    keep = x_start[:, 8:].numpy()
    weight = np.broadcast_to(1 - keep + background * keep, squared.shape)
    error = (weight * squared).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    expected = np.mean(error * (np.minimum(snr, gamma) / snr if gamma else 1))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert next(v for k, v in logged.items() if k.endswith("loss_simple")).item() == pytest.approx(squared.mean(), 1e-4)


def test_every_trainable_parameter_has_a_gradient(golden, golden_config):
    """Plain DDP needs gradients of all of them in every step, with any drop. Parameters without a gradient are
    frozen."""
    trained = load_model(golden_config, GOLDEN / "model.safetensors").train()
    trained.setup("fit")
    for uniform in (0.0, 0.99):
        trained.zero_grad(set_to_none=True)
        draws = Draws.from_seeds([(0,), (1,)], (4, 8, 8), 1000, "cpu")
        draws = Draws(draws.noise_gt, draws.noise_inpaint, draws.t, draws.noise, torch.full((2,), uniform))
        trained.batch_loss(golden_batch(golden), draws, 0.2)[0].backward()
        names = [name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None]
        assert not names
    assert not trained.first_stage_model.training and not trained.cond_stage_model.transformer.training
    assert trained.model.training and trained.cond_stage_model.mapper.training


def test_the_average_of_weights():
    """Against d = min(decay, (1 + n) / (10 + n)), computed in the test."""
    layer = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    layer[0].weight.data.fill_(1.0)
    average = LitEma(layer, decay=0.3)
    assert set(dict(average.named_buffers())) == {"decay", "num_updates", "0weight"}
    expected = 1.0
    for n, value in enumerate((2.0, 5.0, -1.0, 4.0), 1):
        layer[0].weight.data.fill_(value)
        average(layer)
        expected += (1 - min(0.3, (1 + n) / (10 + n))) * (value - expected)
        assert getattr(average, "0weight").item() == pytest.approx(expected, rel=1e-6)
    with average.applied_to(layer):
        assert layer[0].weight.item() == pytest.approx(expected, rel=1e-6)
    assert layer[0].weight.item() == 4.0


def test_compiling_changes_no_name_of_a_weight(golden_config):
    """The networks that a step runs are compiled; a model without such networks raises UserError."""
    from ldm.checkpoint.load import empty_model
    from ldm.models.base import TrainableModel

    model = empty_model(golden_config)
    names = list(model.state_dict())
    model.compile_networks()
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["model.diffusion_model", "first_stage_model.encoder", "cond_stage_model.transformer"]
    assert list(model.state_dict()) == names
    with pytest.raises(UserError, match="--compile has no effect on this config's model: leave it out"):
        TrainableModel().compile_networks()
