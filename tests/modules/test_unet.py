"""Identities of the UNet, in float64, and the names and shapes of the full-size model."""

import copy
import json
import re

import pytest
import torch

from ldm.checkpoint.load import empty_model
from ldm.checkpoint.names import FIRST_CONV
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
def test_the_one_token_path_equals_the_general_path(unet64):
    x, t, c, _ = inputs64()
    # the same token twice takes the general path, in which the softmax gives each half the weight
    general = unet64(x, t, torch.cat([c, c], dim=1))
    fast = unet64(x, t, c)
    assert (fast - general).abs().max() < 1e-13 * general.abs().max()


@torch.no_grad()
def test_contexts_share_the_layers_before_the_first_cross_attention(unet64):
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
def test_configs_of_other_networks_are_rejected(change):
    """By a message that names the option and what to use instead."""
    with pytest.raises(UserError, match=rf"config: UNetModel.*{next(iter(change))}") as error:
        UNetModel(**UNET | change)
    assert re.search(r": (use|remove) ", str(error.value))
