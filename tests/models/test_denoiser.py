"""Classifier-free guidance."""

import copy

import torch

from ldm.models.diffusion.denoiser import guided_eps, make_denoiser


@torch.no_grad()
def test_guided_eps_is_the_equation(model):
    """eps(x, v) + s (eps(x, c) - eps(x, v)) in float64; without guidance only c is evaluated."""
    unet64 = copy.deepcopy(model.model.diffusion_model).double()
    x = torch.randn(2, 9, 8, 8, dtype=torch.float64)
    c, v = torch.randn(2, 2, 1, 40, dtype=torch.float64)
    same = torch.tensor([801, 801])
    eps = guided_eps(make_denoiser(unet64), x[:, 4:], c, v[:1], scale=5.0)
    e_uncond, e_cond = unet64(x, same, v[:1].expand(2, -1, -1)), unet64(x, same, c)
    expected = e_uncond + 5.0 * (e_cond - e_uncond)
    assert (eps(x[:, :4], 801) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert torch.equal(guided_eps(make_denoiser(unet64), x[:, 4:], c, v, scale=1.0)(x[:, :4], 801), e_cond)


def test_outside_the_interval_only_the_condition_is_evaluated():
    """eps = c + t shows branch and timestep; the batch of contexts shows whether one branch is evaluated or both."""
    batches = []

    def apply_model(x, t, contexts):
        batches.append(len(contexts))
        assert x.shape == (2, 9, 1, 1) and t.dtype == torch.int64 and t.shape == (2,)
        return contexts.view(-1, 1, 1, 1) + t.repeat(len(contexts) // 2).view(-1, 1, 1, 1)

    inpaint, c, v = torch.zeros(2, 5, 1, 1), torch.tensor([1.0, 2.0]).view(2, 1, 1), torch.zeros(1, 1, 1)
    eps = guided_eps(make_denoiser(apply_model), inpaint, c, v, 5.0, interval=(100, 800))
    out = {t: (eps(torch.zeros(2, 4, 1, 1), t) - t).flatten().tolist() for t in (999, 801, 800, 450, 100, 99, 0)}
    assert batches == [2, 2, 4, 4, 4, 2, 2]
    assert out == {t: [5, 10] if 100 <= t <= 800 else [1, 2] for t in out}
    batches.clear()
    for scale, uncond, interval in ((1.0, v, (100, 800)), (5.0, None, (100, 800)), (5.0, v, None)):
        guided_eps(make_denoiser(apply_model), inpaint, c, uncond, scale, interval)(torch.zeros(2, 4, 1, 1), 450)
    assert batches == [2, 2, 4]
