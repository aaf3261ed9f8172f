"""Several objects at once: shares, the UNet with a field of tokens, and edits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.editing.regions import Region
from ldm.fast.unet import FastUNet, layers_of, prepare_edit, timestep_shifts
from ldm.methods.token_field import held_eps, shares_of_regions
from ldm.models.diffusion.sampling import ddim_timesteps, eps_from_x0, sample
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.modules.attention import BasicTransformerBlock
from ldm.util import UserError


def two_boxes(size: int = 32) -> torch.Tensor:
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, 4:28, 2:12] = True
    masks[1, 4:28, 20:30] = True
    return masks


def test_shares_sum_to_one_are_whole_inside_and_soft_between():
    shares = shares_of_regions(two_boxes(), (16, 16))
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(16, 16))
    assert (shares[0, 2:14, 1:6] == 1).all() and (shares[1, 2:14, 10:15] == 1).all()
    assert (shares[0].diff(dim=1) <= 0).all() and ((shares[0] > 0) & (shares[0] < 1)).any()
    assert torch.equal(shares_of_regions(two_boxes()[:1], (16, 16)), torch.ones(1, 16, 16))


def test_where_regions_overlap_the_last_has_it():
    masks = two_boxes()
    masks[0] = True
    shares = shares_of_regions(masks, (16, 16), softness=0)
    assert torch.equal(shares[1] == 1, F.adaptive_avg_pool2d(masks[1:].float(), 16)[0] == 1)


def run(unet, x, fixed, contexts, shares=None):
    prepared = prepare_edit(unet, fixed, contexts, torch.float64)
    fast = FastUNet(unet, torch.float64, torch.contiguous_format)
    with torch.no_grad():
        return fast(x, timestep_shifts(unet, 1000, torch.float64)[700:701], *prepared, shares=shares)


@torch.no_grad()
def test_the_field_equals_the_plain_unet_with_another_token_at_every_position(random_unet64):
    """The plain UNet, whose cross-attention is made to see at each position the weighted mean of the tokens themselves;
    with guidance, whose first half of contexts is one token for all."""
    unet = random_unet64
    x, fixed = torch.randn(1, 4, 16, 16, dtype=torch.float64), torch.randn(1, 5, 16, 16, dtype=torch.float64)
    tokens = torch.randn(2, 2, 40, dtype=torch.float64)
    tokens[0] = tokens[0, :1]
    shares = shares_of_regions(two_boxes(), (16, 16)).double()[None]

    def field(module, inputs):
        h, context, *rest = inputs
        side = int(h.shape[1] ** 0.5)
        weights = F.adaptive_avg_pool2d(shares, side).flatten(2).mT
        module.attn2.one_token = lambda _: module.attn2.to_out(module.attn2.to_v(weights @ tokens))
        return h, context[:, :1], *rest

    blocks = list(layers_of(unet, BasicTransformerBlock))
    hooks = [block.register_forward_pre_hook(field) for block in blocks]
    expected = unet(torch.cat([x, fixed], 1), torch.tensor([700]), tokens[:, :1])
    for hook, block in zip(hooks, blocks, strict=True):
        hook.remove()
        del block.attn2.one_token
    torch.testing.assert_close(run(unet, x, fixed, tokens, shares), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_constant_field_equals_the_one_token(random_unet64):
    x, fixed = torch.randn(1, 4, 16, 16, dtype=torch.float64), torch.randn(1, 5, 16, 16, dtype=torch.float64)
    token = torch.randn(1, 1, 40, dtype=torch.float64)
    shares = shares_of_regions(two_boxes(), (16, 16)).double()[None]
    one = run(random_unet64, x, fixed, token)
    torch.testing.assert_close(run(random_unet64, x, fixed, token.expand(-1, 2, -1), shares), one)


SCHEDULE = NoiseSchedule.linear()


def pixelwise(x, t):
    return torch.sin(3 * x) + t / 1000


@pytest.mark.parametrize("strength", [0.0, 0.35, 0.7, 1.0])
def test_each_region_changes_as_by_its_own_strength_alone(strength):
    """SDEdit's own start, from the noise that the first step finds between x_T and the photo."""
    source, x = torch.randn(2, 1, 4, 6, 6, dtype=torch.float64)
    field = torch.full((1, 1, 6, 6), strength, dtype=torch.float64)
    field[..., 3:] = 1.0
    found = sample("ddim", held_eps(pixelwise, source, field, SCHEDULE), x, SCHEDULE, 10)
    noise = x if strength == 1 else eps_from_x0(x, source, float(SCHEDULE.alphas_cumprod[ddim_timesteps(10)[-1]]))
    alone = sample("ddim", pixelwise, noise, SCHEDULE, 10, source=source, strength=strength)
    everything = sample("ddim", pixelwise, x, SCHEDULE, 10)
    if strength == 0:  # to the noise that alphas_cumprod[0] leaves
        a = float(SCHEDULE.alphas_cumprod[0])
        alone = a**0.5 * source + (1 - a) ** 0.5 * noise
    torch.testing.assert_close(found[..., :3], alone[..., :3], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[..., 3:], everything[..., 3:], rtol=1e-9, atol=1e-9)


@pytest.fixture
def two(example):
    other = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    regions = [Region(box=(60, 100, 200, 300)), Region(box=(220, 80, 420, 300))]
    how = {"regions": regions, "steps": 2, "height": 64, "width": 64, "progress": False}
    return example["image"], [example["reference"], other], how


def test_each_region_shows_its_own_reference(edit, two):
    """Exchanged references give another picture; one reference for both, the picture of one region of both boxes."""
    image, references, how = two
    both = edit(image, references=references, together=True, **how)
    swapped = edit(image, references=references[::-1], together=True, **how)
    assert both.size == image.size and not np.array_equal(both, swapped)
    one = edit(image, references=references[:1], together=True, **how)
    mask = Image.new("L", image.size)
    for region in how.pop("regions"):
        mask.paste(255, region.box)
    union = edit(image, mask, references[0], **how)
    assert np.abs(np.asarray(one, int) - np.asarray(union, int)).max() <= 1


def test_the_draft_preset_computes_rectangles_of_a_field(edit, two):
    image, references, how = two
    del how["steps"]
    assert edit(image, references=references, together=True, preset="draft", **how).size == image.size


def test_a_scale_for_each_region(edit, two):
    image, references, how = two
    all_equal = edit(image, references=references, together=(2, 2), **how)
    assert np.array_equal(all_equal, edit(image, references=references, together=True, scale=2, **how))
    assert not np.array_equal(all_equal, edit(image, references=references, together=(2, 9), **how))


def test_a_strength_for_each_region(edit, two):
    image, references, how = two
    plain = edit(image, references=references, together=(5, 2), **how)
    assert np.array_equal(plain, edit(image, references=references, together=((5, 1), 2), **how))
    less = np.asarray(edit(image, references=references, together=((5, 0.5), 2), **how), int)
    assert np.abs(less - plain)[100:300, 60:180].mean() > 1


def test_what_cannot_be_painted_together_is_told(edit, two):
    image, references, how = two
    for own, words in ((5, 1.5), "strength 1.5 is out of range"), ((5, 1, 1), "3 numbers for a region"):
        with pytest.raises(UserError, match=words):
            edit(image, references=references, together=(own, 2), **how)
    with pytest.raises(UserError, match="1 scales for 2 regions"):
        edit(image, references=references, together=(2,), **how)
    with pytest.raises(UserError, match="two regions or more"):
        edit(image, references=references[:1], together=True, **how | {"regions": how["regions"][:1]})
    with pytest.raises(UserError, match="exclude each other"):
        edit(image, references=references, together=True, invert=True, **how)
