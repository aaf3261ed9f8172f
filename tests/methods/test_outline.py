"""DiffEdit's mask: where two conditions differ, inside the rough region."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.editing.window import PlacedWindow
from ldm.methods.outline import difference, narrowed
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError
from tests.conftest import ROOT


def patch_denoiser(inpaint, contexts):
    """eps is the token in a patch, and noise that both conditions share elsewhere."""
    patch = torch.zeros(1, 1, 12, 12)
    patch[..., 3:6, 4:9] = 1

    def eps(x, t):
        return x.repeat(2, 1, 1, 1) + patch * contexts[:, :, None]

    return eps


def test_the_outline_is_where_the_conditions_differ():
    inpaint = torch.ones(1, 5, 12, 12)
    inpaint[:, -1, 1:9, 2:7] = 0
    tokens = torch.tensor([[[2.0]], [[1.0]]])
    schedule, source = NoiseSchedule.linear(), torch.randn(1, 4, 12, 12)
    found = difference(patch_denoiser, inpaint, tokens[:1], tokens[1:], source, schedule)
    expected = torch.zeros(12, 12)
    expected[3:6, 4:7] = 1  # the patch inside the region
    assert torch.allclose(found[0, 0], expected)
    mask = narrowed(inpaint[:, -1:].repeat_interleave(2, 2).repeat_interleave(2, 3), found)
    assert (mask < 1).sum() == 4 * expected.sum()


def test_a_window_takes_a_smaller_mask():
    photo, mask = Image.new("RGB", (40, 30)), Image.new("L", (40, 30))
    mask.paste(255, (8, 6, 24, 22))
    place = PlacedWindow.around(photo, mask, 64)
    region = Image.new("L", (64, 64))
    region.paste(255, (0, 0, 32, 64))  # the left half of the window
    smaller = place.within(region)
    assert smaller.window == place.window
    middle = (place.window[0] + place.window[2]) // 2
    assert smaller.mask.getbbox() == (8, 6, middle, 22)
    with pytest.raises(UserError, match="mark what is by a mask or a polygon"):
        place.within(Image.new("L", (64, 64)))


def test_the_edit_stays_inside_the_rough_region(script, tmp_path):
    name = "000000000012"
    photo, mask, reference = (
        ROOT / f"examples/mini/{folder}/{name}_{kind}.png"
        for folder, kind in (("GT_3500", "GT"), ("Mask_bbox_3500", "mask"), ("Ref_3500", "ref"))
    )
    code, _, err = script(
        "inference", "--image_path", photo, "--mask_path", mask, "--reference_path", reference, "--outdir", tmp_path,
        "--mask_from_difference", "--steps", 2, "--device", "cpu", "--config", MINI_CONFIG, "--ckpt", MINI_CKPT,
    )  # fmt: skip
    assert code == 0, err
    painted, before = Image.open(tmp_path / f"results/{name}_GT_321.png"), Image.open(photo).convert("RGB")
    changed = (np.asarray(painted) != np.asarray(before)).any(axis=-1)
    rough = np.asarray(Image.open(mask).convert("L")) > 127
    assert changed.any() and not (changed & ~rough).any()
    assert changed.sum() < 0.9 * rough.sum()
