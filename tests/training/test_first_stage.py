"""Training of the autoencoder: its loss, and a run of main.py."""

import csv

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.surgery import deepen
from ldm.models.diffusion.draws import Draws
from ldm.training.start import initial_model
from ldm.util import UserError, load_config
from tests.conftest import GOLDEN, ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def first_stage_config():
    config = load_config(ROOT / "configs/mini/first_stage.yaml")
    return OmegaConf.merge(config, {"model": {"params": {"kl_weight": 0.5}}})


def test_the_autoencoders_loss(first_stage_config):
    """The absolute error of a decoded sample of the posterior, plus the Kullback-Leibler divergence by its formula."""
    model = initial_model(first_stage_config)
    batch = {"GT": torch.rand(2, 3, 32, 32) * 2 - 1}
    seeds = [(1, 0, 7, 0), (1, 0, 7, 1)]
    loss, absolute, squared = model.batch_loss(batch, seeds)
    mean, logvar = model.first_stage_model.quant_conv(model.first_stage_model.encoder(batch["GT"])).chunk(2, dim=1)
    noise = Draws.from_seeds(seeds, mean.shape[1:], 1, "cpu").noise_gt
    image = model.first_stage_model.decode(mean + (logvar / 2).exp() * noise)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(absolute, torch.nn.functional.l1_loss(image, batch["GT"]))
    torch.testing.assert_close(loss, absolute + 0.5 * kl.sum() / 2 / (3 * 32 * 32), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squared.mean(), torch.nn.functional.mse_loss(image, batch["GT"]))
    _, first, _ = model.batch_loss(batch, None)
    torch.testing.assert_close(first, (model.first_stage_model.reconstruct(batch["GT"]) - batch["GT"]).abs().mean())


def test_the_autoencoder_is_trained_by_main(photos, tmp_path, first_stage_config, script, monkeypatch):
    """Another run starts from its checkpoint, whose names are those of a LatentDiffusion."""
    words = ["--base", "configs/mini/first_stage.yaml", f"data.params.dataset_dir={photos}"]
    words += ["--max_steps", "3", "--val_check_interval", "2", "--accelerator", "cpu", "data.params.batch_size=4"]
    words += ["data.params.num_workers=0", "lightning.images.every_n_steps=2", "--log_every_n_steps", "1"]
    monkeypatch.chdir(ROOT)
    code, out, err = script("main", *words, "--project", tmp_path / "run")
    assert code == 0, err
    assert "boxes for test" not in out + err and "test/" not in out  # the config has a test split, the data has none
    assert Image.open(tmp_path / "run/images/step00000002.png").size[0] == 2 * 256 + 2
    with open(tmp_path / "run/csv/version_0/metrics.csv") as file:
        (row,) = [row for row in csv.DictReader(file) if row["val/rec_loss"]]
    assert 0 < float(row["val/rec_loss"]) < 2 and 0 < float(row["val/psnr"]) < 30
    tensors = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert all(name.startswith("first_stage_model.") for name in tensors)
    again = initial_model(first_stage_config, str(tmp_path / "run/checkpoints/last.ckpt")).state_dict()
    assert again.keys() == tensors.keys() and all(torch.equal(t, tensors[name]) for name, t in again.items())
    with pytest.raises(UserError, match=r"lacks this model's \d+ tensors"):
        initial_model(first_stage_config, str(GOLDEN / "model.safetensors"))


def test_another_level_starts_from_the_smaller_autoencoder(first_stage_config):
    """Latents are those of the picture at half its size: exactly, if every pixel of that one was doubled. Then only the
    decoder is trained."""
    torch.manual_seed(0)
    small = initial_model(first_stage_config)
    config = OmegaConf.merge(first_stage_config, OmegaConf.load(ROOT / "configs/mini/first_stage_128.yaml"))
    large = initial_model(config, "none")
    large.load_state_dict(deepen(small.state_dict(), large.state_dict()))
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = small.first_stage_model.moments(picture)
        found = large.first_stage_model.moments(picture.repeat_interleave(2, 2).repeat_interleave(2, 3))
        assert large.first_stage_model.decode(expected[:, :4]).shape == (2, 3, 64, 64)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    trained = {name.split(".")[1] for name, p in large.named_parameters() if p.requires_grad}
    assert trained == {"decoder", "post_quant_conv"}
