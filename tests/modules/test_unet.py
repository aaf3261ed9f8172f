"""Identities of the UNet, in float64, and the names and shapes of the full-size model."""

import copy
import json

import pytest
import torch

from ldm.checkpoint.load import empty_model
from ldm.checkpoint.names import FIRST_CONV
from ldm.models.diffusion.denoiser import guided_eps, make_denoiser
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from ldm.util import UserError
from tests.conftest import GOLDEN, ROOT

UNET = {
    "in_channels": 9,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "channel_mult": [1, 2],
    "num_heads": 4,
    "context_dim": 40,
}


@pytest.fixture
def unet64(model):
    return copy.deepcopy(model.model.diffusion_model).double()


def inputs64(batch=2):
    return (
        torch.randn(batch, 9, 8, 8, dtype=torch.float64),
        torch.tensor([7, 801])[:batch],
        torch.randn(batch, 1, 40, dtype=torch.float64),
        torch.randn(batch, 1, 40, dtype=torch.float64),
    )


def test_one_token_equals_attention_over_it():
    attention = CrossAttention(32, 40, heads=4).double()
    x, context = torch.randn(2, 64, 32, dtype=torch.float64), torch.randn(2, 1, 40, dtype=torch.float64)
    torch.testing.assert_close(
        attention.one_token(context).expand(-1, 64, -1), attention(x, context), rtol=0, atol=1e-14
    )


@torch.no_grad()
def test_fast_path_equals_general_path(unet64):
    x, t, c, _ = inputs64()
    # a token said twice takes the general path, and the softmax gives each half
    general = unet64(x, t, torch.cat([c, c], dim=1))
    fast = unet64(x, t, c)
    assert (fast - general).abs().max() < 1e-13 * general.abs().max()


@torch.no_grad()
def test_guidance_shares_what_comes_before_the_first_cross_attention(unet64):
    x, t, c, v = inputs64()
    seen = {}
    for name, module in unet64.named_modules():
        if isinstance(module, ResBlock) or name == "input_blocks.0.0":
            module.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: len(args[0])}))
    shared = unet64(x, t, torch.cat([v, c]))
    assert seen["input_blocks.0.0"] == seen["input_blocks.1.0"] == 2  # once for both branches
    assert seen["middle_block.0"] == seen["output_blocks.3.0"] == 4
    separate = torch.cat([unet64(x, t, v), unet64(x, t, c)])
    assert (shared - separate).abs().max() < 1e-13 * separate.abs().max()

    same = torch.tensor([801, 801])
    eps = guided_eps(make_denoiser(unet64), x[:, 4:], c, v[:1], scale=5.0)
    e_uncond, e_cond = unet64(x, same, v[:1].expand(2, -1, -1)), unet64(x, same, c)
    expected = e_uncond + 5.0 * (e_cond - e_uncond)
    assert (eps(x[:, :4], 801) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert torch.equal(guided_eps(make_denoiser(unet64), x[:, 4:], c, v, scale=1.0)(x[:, :4], 801), e_cond)


def test_outside_the_guidance_interval_the_condition_alone_is_evaluated():
    """eps = c + t, so that both branches and the time can be told; its batch, whether one is evaluated or both."""
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


def test_recomputed_activations_give_the_same_gradients():
    nets = [UNetModel(**UNET, use_checkpoint=flag).double() for flag in (False, True)]
    for parameter in nets[0].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    nets[1].load_state_dict(nets[0].state_dict())
    x, t, c, _ = inputs64()
    for net in nets:
        net(x, t, c).square().sum().backward()
    for (name, a), (_, b) in zip(nets[0].named_parameters(), nets[1].named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_full_size_names_and_shapes_are_the_published_ones():
    rows = [line.split("\t") for line in (GOLDEN / "fullsize_keys.tsv").read_text().splitlines()]
    expected = {name: (shape, dtype) for name, shape, dtype, *_ in rows if shape.startswith("(")}
    model = empty_model(ROOT / "configs/v1.yaml")
    actual = {
        name: (str(tuple(t.shape)), str(t.dtype).removeprefix("torch.")) for name, t in model.state_dict().items()
    }
    assert actual == expected
    counts = json.loads((GOLDEN / "fullsize_counts.json").read_text())["total"]
    assert len(actual) == counts["keys"]
    assert sum(p.numel() for p in model.parameters()) == counts["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counts["trainable"]
    assert FIRST_CONV in actual


def test_toy_names_are_the_published_ones(model):
    from safetensors import safe_open

    with safe_open(GOLDEN / "model.safetensors", "pt") as file:
        assert set(model.state_dict()) == set(file.keys())


@pytest.mark.parametrize(
    "change",
    [{"add_conv_in_front_of_unet": True}, {"num_classes_": 3}, {"num_heads": 3}, {"legacy": True}],
    ids=lambda change: next(iter(change)),
)
def test_a_config_that_means_another_network_is_refused(change):
    with pytest.raises(UserError, match="config: UNetModel"):
        UNetModel(**UNET | change)
