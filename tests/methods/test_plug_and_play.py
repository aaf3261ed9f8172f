"""Plug-and-Play: the photo's features stand where the edit's were; and why Prompt-to-Prompt has nothing to exchange."""

import pytest
import torch

from ldm.methods.plug_and_play import attention_layers, feature_layers, plug_and_play_eps, recorded, replaced
from ldm.models.diffusion.denoiser import guided_eps, make_denoiser
from ldm.modules.attention import CrossAttention


def attention_maps(attn: CrossAttention, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) (B,H,N,M), written out."""
    q, k = (each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in (attn.to_q(x), attn.to_k(context)))
    return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)


def with_maps(attn: CrossAttention, maps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Prompt-to-Prompt: the maps of one pass, the values of another."""
    values = attn.to_v(context).unflatten(2, (attn.heads, -1)).transpose(1, 2)
    return attn.to_out((maps @ values).transpose(1, 2).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("keys", [1, 3])
def test_with_one_key_prompt_to_prompt_has_nothing_to_exchange(keys):
    attn = CrossAttention(32, 24, heads=4).double()
    source, edited = torch.randn(2, 2, 10, 32, dtype=torch.float64)
    c_src, c_ref = torch.randn(2, 2, keys, 24, dtype=torch.float64)
    maps = attention_maps(attn, source, c_src)
    exchanged, own = with_maps(attn, maps, c_ref), attn(edited, c_ref)
    assert (maps == 1).all() == (keys == 1)
    assert torch.allclose(exchanged, own, atol=1e-12) == (keys == 1)


@pytest.fixture
def passes(random_unet64):
    """The UNet, and eps(x, t) of the photo's token, and of the reference's with guidance, on two pictures."""
    inpaint = torch.randn(2, 5, 16, 16, dtype=torch.float64)
    c_src, c_ref, v = torch.randn(3, 2, 1, 40, dtype=torch.float64)
    denoiser = make_denoiser(random_unet64)
    return random_unet64, guided_eps(denoiser, inpaint, c_src), guided_eps(denoiser, inpaint, c_ref, v, 3.0)


@torch.no_grad()
def test_features_are_exchanged_in_both_branches_and_only_as_long_as_asked(passes):
    unet, eps_src, eps = passes
    path = torch.randn(5, 2, 4, 16, 16, dtype=torch.float64)
    timesteps, x = [1, 301, 601, 901], torch.randn(2, 4, 16, 16, dtype=torch.float64)
    layers = feature_layers(unet) + attention_layers(unet)
    assert len(feature_layers(unet)) == 1 and len(attention_layers(unet)) >= 4
    edited = plug_and_play_eps(unet, eps_src, eps, path, timesteps, keep=0.75)
    for t, last, given in ((901, 4, layers), (601, 3, layers), (301, 2, feature_layers(unet)), (1, 1, [])):
        with recorded(given) as own:
            eps_src(path[last], t)
        with replaced(own):
            expected = eps(x, t)
        assert torch.equal(edited(x, t), expected)


@torch.no_grad()
def test_what_replaces_is_what_was_recorded(passes):
    unet, eps_src, eps = passes
    x = torch.randn(2, 4, 16, 16, dtype=torch.float64)
    layers = feature_layers(unet) + attention_layers(unet)
    with recorded(layers) as own:
        eps_src(x, 500)
    plain = eps(x, 500)
    with replaced(own), recorded(layers) as seen:
        changed = eps(x, 500)
    for layer in layers:
        for branch in seen[layer].chunk(2):
            assert torch.equal(branch, own[layer])
    assert not torch.allclose(changed, plain)
    assert torch.equal(eps(x, 500), plain) and not any(layer._forward_hooks for layer in layers)
