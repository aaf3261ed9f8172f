"""Fast layers: equal to the published ones to float64's rounding, with the same weights."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from ldm.fast import onednn
from ldm.fast.convert import FastLinear, PhaseUpsample, convert
from ldm.modules.diffusionmodules.util import Upsample


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


def test_weights_are_shared_where_nothing_changes(random_unet64):
    conv = random_unet64.input_blocks[1][0].in_layers[2]
    assert convert(conv, torch.float64).weight.data_ptr() == conv.weight.data_ptr()
    half = convert(conv, torch.bfloat16, torch.channels_last)
    assert half.weight.dtype == torch.bfloat16 and half.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.dtype == torch.float64 and conv.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("faster", [True, False])
def test_both_libraries_compute_the_same_linear_layer(faster, monkeypatch):
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


def test_onednn_is_used_on_amd_where_it_exists(monkeypatch):
    """Without the operator, or if PyTorch does not name the CPU, F.linear is used."""
    exists = onednn.LINEAR_OPERATOR is not None
    for about, expected in (({"cpu_name": "AMD EPYC"}, exists), ({"cpu_name": "Intel Xeon"}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda about=about: about, raising=False)
        assert onednn.onednn_is_faster.__wrapped__() is expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "AMD EPYC"}, raising=False)
    monkeypatch.setattr(onednn, "LINEAR_OPERATOR", None)
    assert onednn.onednn_is_faster.__wrapped__() is False


def test_the_published_module_stays_as_it_is():
    """The copy has fast layers at any depth; the module that it was made from keeps its own."""
    module = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.nn.Conv2d(8, 8, 3, padding=1))
    before = [type(part) for part in module.modules()]
    fast = convert(module)
    assert [type(part) for part in module.modules()] == before
    assert [type(part).__name__ for part in fast.modules()][2:] == ["FastLinear", "WinogradConv2d"]
    assert list(fast.state_dict()) == list(module.state_dict())


def test_bf16_is_not_used_where_pytorch_cannot_tell(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert onednn.cpu_multiplies_bf16() is False


@pytest.mark.parametrize(
    "machine, supported, instructions, expected",
    [
        *(("x86_64", True, True, True), ("AMD64", True, False, False), ("x86_64", False, True, False)),
        *(("aarch64", True, False, True), ("arm64", False, False, False)),
    ],
)
def test_bf16_that_onednn_emulates_is_not_used(machine, supported, instructions, expected, monkeypatch):
    """On an x86 CPU with AVX-512 and without its BF16 oneDNN says that it supports bf16."""
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda: supported))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, raising=False)
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    assert onednn.cpu_multiplies_bf16() is expected
