"""Evaluations that compute only a rectangle around the region."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.editing.options import Sampling
from ldm.fast.convert import PhaseUpsample
from ldm.fast.networks import Networks
from ldm.fast.region import WHOLE_PICTURE, PartialPicture, RecordedPicture, Rectangle, RegionEps
from ldm.fast.unet import FastSelfAttention, FastTransformer, FastUNet, prepare_edit, timestep_shifts
from ldm.models.diffusion.denoiser import guided_eps
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError

SCHEDULE = NoiseSchedule.linear()
HEIGHT, WIDTH = 16, 24
RECTANGLES = [  # inside, at a corner, from edge to edge
    Rectangle(4, 12, 8, 16, WIDTH),
    Rectangle(8, 16, 0, 12, WIDTH),
    Rectangle(0, 16, 12, 20, WIDTH),
]


def prepared(random_unet64, layout):
    torch.manual_seed(5)
    unet = FastUNet(random_unet64, torch.float64, layout)
    inpaint, contexts = torch.randn(1, 5, HEIGHT, WIDTH).double(), torch.randn(2, 1, 40).double()
    table = timestep_shifts(random_unet64, 1000, torch.float64)
    fixed = prepare_edit(random_unet64, inpaint, contexts, torch.float64)
    return unet, table, fixed, torch.randn(1, 4, HEIGHT, WIDTH).double()


def spliced(unet, rectangle, evaluations):
    """The last evaluation's result, computed in another way: for the whole picture, but after every layer that looks at
    its surroundings, what lies outside the rectangle is put back as it was in the first evaluation."""
    kept = {}

    def splice(module, _, new):
        if module not in kept:
            kept[module] = new
            return new
        inside = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
        rectangle.crop(inside).fill_(True)
        positions = new.shape[-1] * new.shape[-2] if new.ndim == 4 else new.shape[1]
        factor = round((HEIGHT * WIDTH / positions) ** 0.5)
        inside = inside[:, :, ::factor, ::factor]
        return torch.where(inside if new.ndim == 4 else inside.flatten(2).mT, new, kept[module])

    layers = [m for m in unet.modules() if isinstance(m, (torch.nn.Conv2d, PhaseUpsample, FastSelfAttention))]
    inner = [m.conv for m in layers if isinstance(m, PhaseUpsample)]
    layers = [m for m in layers if m not in inner]
    layers += [m.norm for m in unet.modules() if isinstance(m, FastTransformer)]  # keys and values are computed from it
    hooks = [layer.register_forward_hook(splice) for layer in layers]
    results = [unet(*arguments) for arguments in evaluations]
    for hook in hooks:
        hook.remove()
    return results[-1]


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rectangle", RECTANGLES)
def test_a_rectangle_sees_the_last_whole_evaluation_around_it(random_unet64, rectangle, layout):
    """The same x and t give the numbers of the whole evaluation. Another x inside, and another t, give the numbers of
    `spliced`. Two evaluations in a row: the second depends on nothing that the first computed."""
    unet, table, fixed, x = prepared(random_unet64, layout)
    recorded = RecordedPicture()
    whole = unet(x, table[801:802], *fixed, recorded)
    assert torch.equal(whole, unet(x, table[801:802], *fixed))
    within = PartialPicture(rectangle, recorded)
    assert (unet(x, table[801:802], *fixed, within) - rectangle.crop(whole)).abs().max() < 1e-13 * whole.abs().max()

    other = x.clone()
    top, bottom, left, right, _ = rectangle
    # not at its edge, since the first convolution is always of the whole picture
    other[:, :, top + 1 : bottom - 1, left + 1 : right - 1] += 1
    expected = spliced(unet, rectangle, [(x, table[801:802], *fixed), (other, table[601:602], *fixed)])
    for again in (x + 1, other):
        found = unet(again, table[601:602], *fixed, within)
    assert found.shape == (2, 4, bottom - top, right - left)
    assert (found - rectangle.crop(expected)).abs().max() < 1e-12 * expected.abs().max()
    assert (rectangle.crop(expected - whole)).abs().max() > 1e-3  # and it differs from the first


def test_the_rectangle_contains_all_regions():
    """And a pixel around them; its edges are multiples of 4; there is no rectangle where little would be saved."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left = rng.integers(0, 60, 2)
        paint = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
        paint[rng.integers(2), 0, top : top + rng.integers(1, 40), left : left + rng.integers(1, 40)] = True
        found = Rectangle.around(paint, 4)
        assert all(edge % 4 == 0 for edge in found) and found.width == 96
        outside = torch.ones(64, 96, dtype=torch.bool)
        outside[found.top : found.bottom, found.left : found.right] = False
        wide = torch.nn.functional.max_pool2d(paint.any(dim=0).float(), 3, 1, 1)[0] > 0
        assert not (wide & outside).any()
        rows, columns = wide.any(dim=1).nonzero(), wide.any(dim=0).nonzero()
        assert found.top > rows.min() - 4 and found.bottom < rows.max() + 1 + 4
        assert found.left > columns.min() - 4 and found.right < columns.max() + 1 + 4
    corner = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    corner[..., -1, 0] = True
    assert Rectangle.around(corner, 8) == (56, 64, 0, 8, 64)
    corner[..., 10:, :60] = True
    assert Rectangle.around(corner, 8) is None


def test_outside_the_rectangle_pred_x0_stays():
    """eps is the number of its evaluation, which shows where it comes from; every third is of the whole picture."""
    rectangle, areas = Rectangle(2, 6, 4, 8, 8), []

    def eps_of(x, t, area):
        areas.append(type(area))
        new = torch.full((2, 4, 8, 8), float(len(areas)))
        return rectangle.crop(new) if isinstance(area, PartialPicture) else new

    eps, noise = RegionEps(eps_of, rectangle, 3, SCHEDULE), np.random.default_rng(1)
    for i, t in enumerate((901, 801, 701, 601, 501, 401, 301)):
        x = torch.tensor(noise.normal(size=(1, 4, 8, 8)))
        found, abar = eps(x, t), SCHEDULE.alphas_cumprod[t]
        pred_x0 = (x - (1 - abar) ** 0.5 * found) / abar**0.5
        if i % 3 == 0:
            kept = pred_x0
        outside = torch.ones(8, 8, dtype=torch.bool)
        outside[2:6, 4:8] = False
        torch.testing.assert_close(pred_x0[..., outside], kept[..., outside])
        assert (rectangle.crop(found) == i + 1).all()
    assert areas == [
        RecordedPicture,
        PartialPicture,
        PartialPicture,
        RecordedPicture,
        PartialPicture,
        PartialPicture,
        RecordedPicture,
    ]


@torch.no_grad()
def test_networks_compute_a_rectangle_where_that_saves_work(model):
    """Not with refresh 1, nor for a region that is most of the picture, nor in the plain UNet."""
    inpaint, c, v = torch.randn(1, 5, 16, 16), torch.randn(1, 1, 40), torch.randn(1, 1, 40)
    inpaint[:, -1:] = 1
    inpaint[:, -1, 5:7, 5:7] = 0
    large = inpaint.clone()
    large[:, -1:] = 0
    x = torch.randn(1, 4, 16, 16)

    def second(networks, inpaint, refresh):
        eps = guided_eps(lambda *given: networks.denoiser(*given, refresh), inpaint, c, v, 5.0)
        eps(x, 801)
        return eps(x + 0.1, 781)

    networks, plain = Networks(model), Networks(model, fast=False)
    everything = second(networks, inpaint, 1)
    difference = (second(networks, inpaint, 2) - everything).abs()
    assert 0 < difference[:, :, 5:7, 5:7].max() < 0.1 * everything.abs().max()
    assert torch.equal(second(networks, large, 2), second(networks, large, 1))
    assert torch.equal(second(plain, inpaint, 2), second(plain, inpaint, 1))
    assert networks.rectangle(inpaint[:, -1:], 1) is None and WHOLE_PICTURE.crop(x) is x


def test_a_picture_does_not_depend_on_the_region_beside_it(edit, example):
    """`fast` depends on the region, so only edits with the same rectangle are made together."""
    here, there = (Image.new("L", example["image"].size) for _ in range(2))
    here.paste(255, (60, 60, 160, 160))
    there.paste(255, (420, 220, 520, 320))
    words = {"preset": "fast", "height": 64, "width": 96, "context": "photo", "background": "none", "progress": False}
    photo, reference = example["image"], example["reference"]
    alone = edit(photo, here, reference, seed=7, **words)
    together = edit(photo, [there, here, here], reference, seed=[5, 7, 9], **words)
    assert np.abs(np.asarray(alone, int) - np.asarray(together[1], int)).max() <= 1
    assert together[0].tobytes() != together[2].tobytes()
    inputs = [edit.prepare(photo, mask, reference, 64, 96) for mask in (here, there)]
    assert edit.batch_key(inputs[0], Sampling()) == edit.batch_key(inputs[1], Sampling())
    assert edit.batch_key(inputs[0], Sampling(refresh=2)) != edit.batch_key(inputs[1], Sampling(refresh=2))
    with pytest.raises(UserError, match="refresh 0 is out of range"):
        edit.sample(inputs[0], [321], Sampling(steps=2, refresh=0))
