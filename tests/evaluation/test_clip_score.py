"""The crops of the CLIP score and the copy-and-paste score, against golden numbers of the published crop."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.conventions import normalise_clip
from ldm.evaluation.clip_score import bounding_box, clip_region, copy_paste, published_crop, similarity


def test_the_published_crop(numbers):
    failed = 0
    for mask, crop, shape, error in zip(
        *(numbers[f"clip_{name}"] for name in ("masks", "crop_r0_r1_c0_c1", "crop_tensor_shape", "error")), strict=True
    ):
        if error:
            assert published_crop(mask) is None
            failed += 1
        else:
            r0, r1, c0, c1 = published_crop(mask)
            assert (r0, r1, c0, c1) == tuple(crop) and (r1 - r0, c1 - c0) == tuple(shape[1:])
    assert failed == 4


def test_bounding_box_has_the_last_row_and_column():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 7:20] = 255
    assert bounding_box(mask) == (5, 9, 7, 20) and published_crop(mask) == (5, 8, 7, 19)
    assert bounding_box(np.zeros((4, 4), np.uint8)) is None


def test_the_region_is_resized_after_it_is_normalised():
    """Bilinear without antialias: a crop that already has the right size keeps its pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:43, 20:53] = 255
    own = torch.from_numpy(clip_region(Image.fromarray(pixels), mask, 32))
    wanted = normalise_clip(torch.from_numpy(pixels[10:42, 20:52].copy()).permute(2, 0, 1) / 255.0)
    torch.testing.assert_close(own, wanted)
    assert clip_region(Image.fromarray(pixels), np.zeros_like(mask), 32) is None
    a, b = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [4.0, -3.0]])
    assert similarity(a, b).tolist() == [1.0, 0.0]


def test_copy_paste():
    rng = np.random.default_rng(0)
    region, other = (Image.fromarray(rng.integers(0, 256, (30, 24, 3), dtype=np.uint8)) for _ in range(2))
    assert copy_paste(region, region) == pytest.approx(1)
    assert copy_paste(region, region.resize((240, 300), Image.Resampling.NEAREST)) > 0.9
    assert abs(copy_paste(region, other)) < 0.1
    negative = Image.fromarray(255 - np.asarray(region))
    assert copy_paste(region, negative) == pytest.approx(-1)
    darker = region.point(lambda value: value // 2 + 20)  # the same pixels in another light
    assert copy_paste(region, darker) > 0.99
