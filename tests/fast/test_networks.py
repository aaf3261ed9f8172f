"""FastUNet and Networks compute what the model computes."""

import pytest
import torch

from ldm.fast.networks import Networks
from ldm.fast.unet import FastUNet, prepare_edit, timestep_shifts
from ldm.models.diffusion.conditioning import encode_to_latent
from ldm.util import UserError


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("branches", [1, 2])
def test_fast_unet_equals_unet(random_unet64, layout, branches):
    batch, t = 3, 801
    x, contexts = torch.randn(batch, 9, 8, 12).double(), torch.randn(branches * batch, 1, 40).double()
    expected = random_unet64(x, torch.full((batch,), t), contexts)
    fast = FastUNet(random_unet64, torch.float64, layout)
    shifts = timestep_shifts(random_unet64, 1000, torch.float64)
    fixed, vectors = prepare_edit(random_unet64, x[:, 4:], contexts, torch.float64)
    found = fast(x[:, :4], shifts[t : t + 1], fixed, vectors)
    assert (found - expected).abs().max() < 1e-13 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    ("precision", "fast", "tolerance"),
    [("full", True, 1e-5), ("bf16", True, 0.06), ("fp16", True, 0.01), ("bf16", False, 0.06)],
)
def test_networks_compute_what_the_model_computes(model, precision, fast, tolerance):
    """Differences are relative to the largest value of the model's own float32 result."""
    networks = Networks(model, precision, fast)
    side = 8 * model.first_stage_model.factor
    image, z, inpaint = torch.rand(1, 3, side, side) * 2 - 1, torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)
    contexts = torch.randn(4, 1, model.model.diffusion_model.context_dim)
    noise = torch.randn(1, 4, 8, 8)
    pairs = {
        "latent": (encode_to_latent(networks, image, noise), encode_to_latent(model, image, noise)),
        "picture": (networks.decode_first_stage(z), model.decode_first_stage(z)),
        "eps": (
            networks.denoiser(inpaint, contexts)(z, 7),
            model.apply_model(torch.cat([z, inpaint], dim=1), torch.tensor([7, 7]), contexts),
        ),
        "several tokens": (
            networks.denoiser(inpaint, contexts.repeat(1, 3, 1))(z, 7),
            model.apply_model(torch.cat([z, inpaint], dim=1), torch.tensor([7, 7]), contexts.repeat(1, 3, 1)),
        ),
    }
    for name, (found, expected) in pairs.items():
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= tolerance * expected.abs().max(), name


def test_compile_requires_a_gpu(model):
    with pytest.raises(UserError, match=r"--compile needs an NVIDIA GPU .*: leave it out"):
        Networks(model, compiled=True)
