"""What makes edits fast leaves them as they are: identities in float64, an edit's networks, tiles, the benchmark."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from ldm.fast import onednn
from ldm.fast.convert import FastLinear, PhaseUpsample, convert
from ldm.fast.networks import Networks
from ldm.fast.unet import FastUNet, prepare_edit, timestep_shifts
from ldm.models.autoencoder import apply_in_tiles
from ldm.models.diffusion.conditioning import encode_to_latent
from ldm.modules.diffusionmodules.util import Upsample
from ldm.util import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize("transposed", [True, False])
def test_phases_equal_upsampling_and_convolution(transposed):
    """Against scipy's correlation of the picture repeated by hand, borders included."""
    conv = torch.nn.Conv2d(3, 2, 3, padding=1).double()
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    large = x[0].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).numpy()
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    expected = [sum(correlate(large[i], weight[o, i], "same") for i in range(3)) + bias[o] for o in range(2)]
    found = PhaseUpsample(conv, transposed)(x)
    torch.testing.assert_close(found[0], torch.tensor(np.array(expected)), rtol=0, atol=1e-14)


def test_sums_of_weights_are_rounded_once():
    up = Upsample(8)
    half = convert(PhaseUpsample(up.conv, True), torch.bfloat16).conv.weight
    torch.testing.assert_close(half, PhaseUpsample(up.conv, True).conv.weight.bfloat16(), rtol=0, atol=0)
    twice = PhaseUpsample(convert(up.conv, torch.bfloat16), True).conv.weight
    exact = PhaseUpsample(copy.deepcopy(up.conv).double(), True).conv.weight
    assert (half - exact).norm() < 0.8 * (twice - exact).norm()


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


def test_weights_that_need_no_change_are_shared(random_unet64):
    conv = random_unet64.input_blocks[1][0].in_layers[2]
    assert convert(conv, torch.float64).weight.data_ptr() == conv.weight.data_ptr()
    half = convert(conv, torch.bfloat16, torch.channels_last)
    assert half.weight.dtype == torch.bfloat16 and half.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.dtype == torch.float64 and conv.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("faster", [True, False])
def test_linear_layers_are_the_same_from_either_library(faster, monkeypatch):
    if faster and onednn.LINEAR_OPERATOR is None:
        pytest.skip("this PyTorch has no such operator")
    monkeypatch.setattr("ldm.fast.onednn.onednn_is_faster", lambda: faster)
    for bias in (True, False):
        layer = torch.nn.Linear(40, 70, bias)
        other, x = convert(layer), torch.randn(2, 5, 40)
        assert isinstance(other, FastLinear) and type(layer) is torch.nn.Linear
        assert other.weight.data_ptr() == layer.weight.data_ptr()
        exact = copy.deepcopy(layer).double()(x.double())
        assert (other(x) - exact).abs().max() < 1e-6
        torch.testing.assert_close(convert(layer, torch.float64)(x.double()), exact)


def test_which_library_is_for_which_cpu(monkeypatch):
    """And where the operator has gone, or PyTorch does not say whose CPU it is, the public function."""
    there = onednn.LINEAR_OPERATOR is not None
    for about, expected in (({"cpu_name": "AMD EPYC"}, there), ({"cpu_name": "Intel Xeon"}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda about=about: about, raising=False)
        assert onednn.onednn_is_faster.__wrapped__() is expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "AMD EPYC"}, raising=False)
    monkeypatch.setattr(onednn, "LINEAR_OPERATOR", None)
    assert onednn.onednn_is_faster.__wrapped__() is False


@torch.no_grad()
@pytest.mark.parametrize(
    ("precision", "fast", "most"),
    [("full", True, 1e-5), ("bf16", True, 0.06), ("fp16", True, 0.01), ("bf16", False, 0.06)],
)
def test_networks_stand_in_for_the_model(model, precision, fast, most):
    """Relative to the largest value of what the model itself gives, in float32."""
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
        assert (found - expected).abs().max() <= most * expected.abs().max(), name


def test_compiling_is_for_gpus(model):
    with pytest.raises(UserError, match="--compile is for NVIDIA's GPUs"):
        Networks(model, compiled=True)


@pytest.mark.parametrize("scale", [2, 0.5])
def test_tiles_of_a_local_function_are_seamless(scale):
    """Where what a place gives does not depend on its tile, blending changes nothing; and the tiles are small."""
    seen = []

    def resize(x):
        seen.append(x.shape[-2:])
        return torch.nn.functional.interpolate(x, scale_factor=scale, mode="nearest")

    x = torch.randn(1, 2, 40, 56)
    torch.testing.assert_close(apply_in_tiles(resize, x, 16, 4, scale), resize(x))
    assert max(max(s) for s in seen[:-1]) == 16 and len(seen) > 10


@torch.no_grad()
def test_tiles_of_the_autoencoder_are_near_the_whole(model):
    """On a picture all of one kind, whose statistics are the same in every tile."""
    z = torch.randn(1, 4, 24, 24)
    whole = model.first_stage_model.decode(z)
    tiled = apply_in_tiles(model.first_stage_model.decode, z, 16, 8, model.first_stage_model.factor)
    assert (tiled - whole).abs().mean() < 0.2 * whole.std()


KEEPING = """
import resource, sys, torch
from ldm.fast.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def work():
    held = []
    for megabytes in (3, 1, 5, 2, 8, 1, 4):
        held = [*held[-2:], torch.ones(megabytes * 2**18)]
for _ in range(6):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="keep_memory is for Linux")
def test_kept_memory_is_not_asked_of_the_system_again():
    """Page faults of a piece of work done before, in processes of their own, since keeping cannot be undone."""
    run = [sys.executable, "-c", KEEPING]
    keep, leave = (int(subprocess.check_output([*run, how], cwd=ROOT)) for how in ("keep", "leave"))
    assert keep <= leave / 10
