"""Convolutions from fewer products: equal to PyTorch's in float64, as exact in float32, used where they are faster."""

import pytest
import torch
import torch.nn.functional as F

from ldm.fast import winograd
from ldm.fast.convert import convert
from ldm.fast.networks import Networks
from ldm.fast.region import PartialPicture, RecordedPicture, Rectangle
from ldm.fast.unet import prepare_edit
from ldm.fast.winograd import WinogradConv2d, transform_weight, winograd_conv2d
from ldm.models.diffusion.conditioning import encode_to_latent

KINDS = [(2, 3), (4, 2), (4, 3)]


@pytest.mark.parametrize("block_size", [1, 30, winograd.BLOCK_SIZE])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("m", "r"), KINDS)
def test_tiles_equal_a_convolution(m, r, padding, block_size, monkeypatch):
    """For sizes that are and are not multiples of a tile, in one block and in many."""
    monkeypatch.setattr(winograd, "BLOCK_SIZE", block_size)
    weight = torch.randn(5, 3, r, r).double()
    for size in ((8 + r - 1, 12 + r - 1), (9, 14), (13, 7), (r, r)):
        x = torch.randn(2, 3, *size).double()
        found = winograd_conv2d(x, transform_weight(weight, m), m, r, padding)
        torch.testing.assert_close(found, F.conv2d(x, weight, padding=padding), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("m", "r", "tolerance"), [(2, 3, 0.6e-6), (4, 2, 1.1e-6), (4, 3, 1.8e-6)])
def test_rounding_errors_are_those_of_a_convolution(m, r, tolerance):
    """In float32 with as many channels as the networks have: root mean square and largest difference from float64.
    With the usual points for m = 4 and r = 3 it would be 2.5e-6; PyTorch's own is about 1e-6."""
    x, weight = torch.randn(1, 320, 26, 26), torch.randn(64, 320, r, r) / (320 * r * r) ** 0.5
    exact = F.conv2d(x.double(), weight.double())
    error = winograd_conv2d(x, transform_weight(weight, m), m, r) - exact
    assert error.norm() < tolerance * exact.norm()
    assert error.abs().max() < 2e-5


def test_only_supported_layers_are_replaced():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(256, 256, 3, padding=1),
        torch.nn.Conv2d(256, 512, 2, padding=1),
        torch.nn.Conv2d(256, 256, 3, padding=1, stride=2),
        torch.nn.Conv2d(256, 256, 3),
        torch.nn.Conv2d(256, 256, 1),
        torch.nn.Conv2d(256, 256, 3, padding=1, groups=2),
        torch.nn.Conv2d(256, 256, 3, padding=1, padding_mode="circular"),
        torch.nn.ConvTranspose2d(256, 256, 4, 2, 1),
    )
    assert [isinstance(part, WinogradConv2d) for part in convert(layers)] == [True] * 2 + [False] * 6
    assert not any(isinstance(part, WinogradConv2d) for part in layers)


@torch.no_grad()
def test_tiles_are_used_where_they_are_faster(monkeypatch):
    """For enough channels and positions, in float32; not for 2x2 kernels of very many channels."""
    calls = []
    monkeypatch.setattr(winograd, "winograd_conv2d", lambda *given: calls.append(given[2]) or winograd_conv2d(*given))

    def tiles(channels, out_channels, side, dtype=torch.float32, kernel=3):
        layer = convert(torch.nn.Conv2d(channels, out_channels, kernel, padding=1), dtype)
        x = torch.randn(1, channels, side, side, dtype=dtype)
        calls.clear()
        direct = F.conv2d(x, layer.weight, layer.bias, padding=1)
        found = layer(x)
        assert torch.equal(found, direct) if not calls else (found - direct).abs().max() < 1e-4
        return calls[0] if calls else None

    assert tiles(256, 256, 10) == tiles(320, 640, 12) == tiles(256, 512, 12, kernel=2) == 4
    assert tiles(1280, 1280, 10) == 2
    assert tiles(256, 256, 9) is tiles(255, 256, 10) is tiles(256, 4, 10) is None
    assert tiles(256, 256, 10, torch.float64) is tiles(1280, 1280, 10, kernel=2) is None

    layer, x = convert(torch.nn.Conv2d(256, 256, 3, padding=1)), torch.randn(1, 256, 9, 9)
    calls.clear()  # the positions of a rectangle count, not those around it
    assert torch.equal(layer(F.pad(x, [1] * 4), padding=0), layer(x)) and not calls


@torch.no_grad()
@pytest.mark.parametrize("max_pairs", [0, winograd.MAX_PAIRS_OF_LARGE_TILES])
def test_networks_of_tiles_compute_what_the_model_computes(model, monkeypatch, max_pairs):
    """The toy model with every convolution in tiles of either size, and a rectangle of its UNet. The UNet keeps its
    transformed weights; the autoencoder, which runs once per edit, does not."""
    for name, value in {"MIN_CHANNELS": 1, "MIN_POSITIONS": 1, "MAX_PAIRS_OF_LARGE_TILES": max_pairs}.items():
        monkeypatch.setattr(winograd, name, value)
    tiled, made = [], []
    monkeypatch.setattr(winograd, "winograd_conv2d", lambda *given: tiled.append(given[2]) or winograd_conv2d(*given))
    monkeypatch.setattr(winograd, "transform_weight", lambda *given: made.append(given) or transform_weight(*given))

    def counted(function, *given):
        tiled.clear(), made.clear()
        return function(*given), len(tiled), len(made)

    networks, side = Networks(model), 16
    image = torch.rand(1, 3, *[side * model.first_stage_model.factor] * 2) * 2 - 1
    z, inpaint, noise = torch.randn(1, 4, side, side), torch.randn(1, 5, side, side), torch.randn(1, 4, side, side)
    contexts = torch.randn(2, 1, model.model.diffusion_model.context_dim)
    eps = networks.denoiser(inpaint, contexts)
    both = torch.cat([z, inpaint], dim=1).repeat(2, 1, 1, 1)
    for function, given, expected in (
        (encode_to_latent, (networks, image, noise), encode_to_latent(model, image, noise)),
        (networks.decode_first_stage, (z,), model.decode_first_stage(z)),
        (eps, (z, 7), model.apply_model(both, torch.tensor([7, 7]), contexts)),
    ):
        found, convolutions, transformations = counted(function, *given)
        assert convolutions == transformations >= 10 and set(tiled) == {4 if max_pairs else 2}
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert counted(function, *given)[1:] == (convolutions, 0 if function is eps else transformations)

    kept = [name for name, _ in networks.unet.named_buffers() if name.endswith("transformed_weight")]
    assert len(kept) >= 10 and not set(kept) & set(networks.unet.state_dict())
    assert not any(name.endswith("transformed_weight") for name, _ in networks.first_stage.named_buffers())

    recorded, rectangle = RecordedPicture(), Rectangle(4, 12, 0, 8, side)
    given = z, networks.shifts[7:8], *prepare_edit(model.model.diffusion_model, inpaint, contexts)
    whole, convolutions, _ = counted(networks.unet, *given, recorded)
    found, *counts = counted(networks.unet, *given, PartialPicture(rectangle, recorded))
    assert counts == [convolutions, 0]
    assert (found - rectangle.crop(whole)).abs().max() <= 1e-5 * whole.abs().max()
