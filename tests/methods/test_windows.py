"""Windows: their weights, their average against closed forms, and edits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.editing.metadata import read_settings
from ldm.editing.regions import Region
from ldm.methods.windows import MARGIN, weights_of, windowed, windows_over
from ldm.models.diffusion.denoiser import guided_eps
from ldm.models.diffusion.sampling import ddim_parameters, ddim_step, ddim_timesteps, sample
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError

SCHEDULE = NoiseSchedule.linear()
SIDE = 16


def painted(top, bottom, left, right, size=(40, 56)):
    paint = torch.zeros(1, 1, *size, dtype=torch.bool)
    paint[..., top:bottom, left:right] = True
    return paint


def pixelwise(inpaint, contexts):
    """No position depends on another."""
    both = len(contexts) // len(inpaint)

    def eps(x, t):
        x, fixed = (each.repeat(both, 1, 1, 1) for each in (x, inpaint))
        return torch.sin(3 * x) * fixed[:, :4] + contexts.mean(dim=(1, 2)).view(-1, 1, 1, 1) + t / 1000

    return eps


def blurred(inpaint, contexts):
    """Every position depends on those around it, and sees zeros outside of its window."""
    return lambda x, t: F.avg_pool2d(pixelwise(inpaint, contexts)(x, t), 5, stride=1, padding=2)


def tensors(size=(40, 56), batch=2):
    shapes = {"x": (batch, 4, *size), "inpaint": (batch, 5, *size), "c": (batch, 1, 3), "v": (1, 1, 3)}
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes.values()]


@pytest.mark.parametrize(
    "paint",
    [painted(0, 40, 0, 56), painted(5, 30, 9, 50), painted(0, 3, 50, 56), painted(30, 31, 3, 40), painted(4, 9, 4, 9)],
)
def test_weights_sum_to_one_wherever_anything_is_painted(paint):
    windows = windows_over(paint, SIDE)
    total = weights_of(windows, (40, 56)).sum(dim=0)
    margin = int(MARGIN * SIDE)
    around = F.max_pool2d(paint.float(), 2 * margin + 1, stride=1, padding=margin)[0] > 0
    assert (total[around] > 0).all() and ((total == 0) | ((total - 1).abs() < 1e-12)).all()
    for window in windows:
        assert (window.bottom - window.top, window.right - window.left) == (SIDE, SIDE)
        assert 0 <= window.top <= 40 - SIDE and 0 <= window.left <= 56 - SIDE


def test_corners_that_paint_nothing_get_no_window():
    paint = painted(0, 40, 0, 8) | painted(0, 8, 0, 56)
    assert len(windows_over(paint, SIDE)) < len(windows_over(painted(0, 40, 0, 56), SIDE))
    two = torch.cat([painted(0, 40, 0, 8), painted(0, 8, 0, 56)])  # of two edits in a batch
    assert windows_over(two, SIDE) == windows_over(paint, SIDE)


@pytest.mark.parametrize("how", ["ddim", "plms"])
def test_a_pixelwise_model_gives_the_same_in_windows(how):
    """With guidance, whose scale differs from place to place."""
    x, inpaint, c, v = tensors()
    scale = torch.rand(2, 1, 40, 56, dtype=torch.float64) * 5
    windows = windows_over(painted(0, 40, 0, 56), SIDE)
    parts = windowed([pixelwise] * len(windows), windows, weights_of(windows, (40, 56)))
    whole, found = (sample(how, guided_eps(each, inpaint, c, v, scale), x, SCHEDULE, 4) for each in (pixelwise, parts))
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)


def test_averaging_eps_averages_the_steps_of_the_windows():
    """Bar-Tal et al. 2023, equation 5, by its own words: every window takes its step, then they are averaged."""
    x, inpaint, c, _ = tensors()
    windows = windows_over(painted(5, 30, 9, 50), SIDE)
    weights = weights_of(windows, (40, 56))
    timesteps = ddim_timesteps(10)
    (alpha, *_), (alpha_prev, *_), _ = ddim_parameters(SCHEDULE, timesteps[-1:])
    together, share = torch.zeros_like(x), torch.zeros(40, 56, dtype=torch.float64)
    for own, window in zip(weights, windows, strict=True):
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        part = x[..., rows, columns]
        e = blurred(inpaint[..., rows, columns], c)(part, int(timesteps[-1]))
        together[..., rows, columns] += own[..., rows, columns] * ddim_step(part, e, alpha, alpha_prev)[0]
        share[rows, columns] += own[0, rows, columns]
    e = windowed([blurred] * len(windows), windows, weights)(inpaint, c)(x, int(timesteps[-1]))
    found, seen = ddim_step(x, e, alpha, alpha_prev)[0], share > 0
    torch.testing.assert_close(found[..., seen], (together / share.clamp(min=1e-9))[..., seen])
    assert (e[..., ~seen] == 0).all() and (~seen).any()


@pytest.mark.parametrize("size", [(16, 16), (8, 16)])
def test_one_window_is_the_plain_path_to_the_bit(size):
    x, inpaint, c, v = (each.float() for each in tensors(size))
    windows = windows_over(painted(2, 5, 3, 9, size), SIDE)
    one = windowed([blurred] * len(windows), windows, weights_of(windows, size))
    assert len(windows) == 1
    plain, found = (guided_eps(each, inpaint, c, v, 3.0)(x, 700) for each in (blurred, one))
    assert torch.equal(found, plain)


# ------------------------------------------------------------------------------------------------ edits

LARGE = {"height": 160, "width": 192, "context": "photo", "steps": 1, "progress": False}  # the model's size is 128


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_an_edit_by_a_pixelwise_model_is_the_same_in_windows(edit, example, monkeypatch):
    """Of every step where the region is; elsewhere there may be no window."""
    monkeypatch.setattr(edit.networks, "denoiser", lambda inpaint, contexts, **_: pixelwise(inpaint, contexts))
    steps = [], []
    for windows, own in zip((False, True), steps, strict=True):
        edit(**example, **LARGE, windows=windows, callback=lambda step, own=own: own.append(step.pred_x0))
    keep = edit.prepare(example["image"], example["mask"], example["reference"], 160, 192).mask
    paint = F.avg_pool2d(keep, 8)[0, 0] < 0.5
    assert 0.05 < paint.float().mean() < 0.8
    for whole, found in zip(*steps, strict=True):
        torch.testing.assert_close(found[..., paint], whole[..., paint], rtol=1e-4, atol=1e-4)


def test_a_picture_does_not_depend_on_those_made_with_it(edit, example):
    """Their masks are seen by other windows."""
    other = Image.new("L", example["image"].size)
    other.paste(255, (20, 30, 220, 300))
    photo, mask, reference = example["image"], example["mask"], example["reference"]
    several = edit(photo, [mask, mask, other], reference, seed=[5, 6, 7], windows=True, **LARGE)
    alone = edit(photo, mask, reference, seed=6, windows=True, **LARGE)
    assert np.abs(np.asarray(alone, int) - np.asarray(several[1], int)).max() <= 1  # rounding, of other kernels


def test_the_size_is_the_photos_own_only_where_that_is_larger(edit, example):
    how = {"steps": 1, "progress": False, "context": "photo"}
    for size, expected in (((300, 200), (192, 288)), ((150, 100), (128, 192))):
        small = example["image"].resize(size), example["mask"].convert("L").resize(size), example["reference"]
        seen = []
        found = edit(*small, **how, windows=True, callback=lambda step, seen=seen: seen.append(step.x))
        assert seen[0].shape[-2:] == (expected[0] // 8, expected[1] // 8)
        assert same(found, edit(*small, **how)) == (size[0] < 200)


TWO = {"regions": [Region(box=(60, 100, 200, 300)), Region(box=(220, 80, 420, 300))], "together": (3, 5)}
OTHERS = [{"strength": 0.6}, {"blend_latents": True}, {"keep_layout": "ddpm"}, {"preset": "draft"}, TWO]


@pytest.mark.parametrize("how", OTHERS, ids=lambda how: next(iter(how)))
def test_other_methods_go_with_it(edit, example, how):
    given = {"reference": example["reference"], "mask": example["mask"]}
    if "regions" in how:
        given = {"references": [example["reference"]]}
    given |= {name: value for name, value in LARGE.items() if not ("preset" in how and name == "steps")}
    one, two = (edit(example["image"], **given, **how, windows=windows) for windows in (False, True))
    assert one.size == two.size == example["image"].size and not same(one, two)


def test_the_command_writes_that_it_was_so(edit_example, tiny, tmp_path):
    code, _, err = edit_example(tmp_path, tiny, "--windows", "--H", 160, "--W", 160, "--skip_grid")
    assert code == 0, err
    assert read_settings(tmp_path / "results/example_2_321.png")["windows"] is True


def test_what_does_not_go_with_it(edit, example):
    with pytest.raises(UserError, match="windows and keep_layout pnp exclude each other"):
        edit(**example, **LARGE, windows=True, keep_layout="pnp")
