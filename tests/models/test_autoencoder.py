"""The autoencoder in tiles."""

import pytest
import torch

from ldm.models.autoencoder import apply_in_tiles


@pytest.mark.parametrize("scale", [2, 0.5])
def test_tiles_of_a_local_function_have_no_seams(scale):
    """Blending changes nothing where a result does not depend on its tile; no tile is larger than asked for."""
    seen = []

    def resize(x):
        seen.append(x.shape[-2:])
        return torch.nn.functional.interpolate(x, scale_factor=scale, mode="nearest")

    x = torch.randn(1, 2, 40, 56)
    torch.testing.assert_close(apply_in_tiles(resize, x, 16, 4, scale), resize(x))
    assert max(max(s) for s in seen[:-1]) == 16 and len(seen) > 10


@torch.no_grad()
def test_a_tiled_decode_is_close_to_the_whole(model):
    """For a latent of noise, whose statistics are the same in every tile."""
    z = torch.randn(1, 4, 24, 24)
    whole = model.first_stage_model.decode(z)
    tiled = apply_in_tiles(model.first_stage_model.decode, z, 16, 8, model.first_stage_model.factor)
    assert (tiled - whole).abs().mean() < 0.2 * whole.std()
