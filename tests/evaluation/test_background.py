"""Background and seam: against torchmetrics, and with pictures whose scores are known."""

import pytest
import torch

from ldm.evaluation.background import (
    background_psnr,
    background_ssim,
    with_source_region,
)
from ldm.pictures.seam import SEAM_RADIUS, seam


@pytest.fixture
def pair():
    """A result, its source and the mask, 1 = keep."""
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(3, 40, 48, generator=generator)
    image = (source + 0.05 * torch.randn(source.shape, generator=generator)).clamp(0, 1)
    keep = torch.ones(1, 40, 48)
    keep[:, 10:30, 12:30] = 0
    return image, source, keep


def test_background_scores_agree_with_torchmetrics_where_all_is_kept(pair):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    image, source, _ = pair
    every = torch.ones(1, 40, 48)
    psnr = peak_signal_noise_ratio(image, source, data_range=1.0).item()
    assert background_psnr(image, source, every) == pytest.approx(psnr, rel=1e-5)
    ssim = structural_similarity_index_measure(image[None], source[None], data_range=1.0).item()
    assert background_ssim(image, source, every) == pytest.approx(ssim, abs=0.01)  # torchmetrics leaves out a border


def test_background_scores_do_not_see_the_painted_region(pair):
    image, source, keep = pair
    other = image * keep + (1 - keep) * 0.3
    for measure in (background_psnr, background_ssim):
        assert measure(image, source, keep) == measure(other, source, keep)
    clean = source * keep + (1 - keep) * 0.3
    assert background_psnr(clean, source, keep) == 100 and background_ssim(clean, source, keep) == pytest.approx(1)
    torch.testing.assert_close(with_source_region(clean, source, keep), source)
    noisier = (source + 2 * (image - source)).clamp(0, 1)
    assert background_psnr(noisier, source, keep) < background_psnr(image, source, keep) - 3


def test_seam():
    keep = torch.ones(1, 64, 64)
    keep[:, 20:40, 20:40] = 0
    ramp = torch.linspace(0, 0.63, 64).expand(3, 64, 64)  # 0.01 from column to column
    assert seam(torch.full((3, 64, 64), 0.4), keep) == pytest.approx(1)
    pasted = torch.where(keep == 0, torch.tensor(0.6), torch.tensor(0.4)).expand(3, 64, 64)
    assert seam(pasted, keep) == pytest.approx((0.2 + 1 / 255) * 255, rel=1e-5)  # it is flat elsewhere
    assert seam(ramp, keep) == pytest.approx(1, abs=0.02)
    assert seam(ramp + 0.1 * (1 - keep), keep) > 5
    far = ramp.clone()
    far[..., : 20 - SEAM_RADIUS - 2] = torch.rand(3, 64, 20 - SEAM_RADIUS - 2)  # pixels that are not near do not count
    assert seam(far, keep) == pytest.approx(seam(ramp, keep))
    assert seam(ramp, torch.ones(1, 64, 64)) is None
