"""The miniature model's prior, and how the rows of Table 3 start from it."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from ldm.checkpoint.load import write_checkpoint
from ldm.checkpoint.locate import MINI_CONFIG
from ldm.checkpoint.surgery import widen
from ldm.models.diffusion.conditioning import unconditional_token
from ldm.models.diffusion.draws import Draws
from ldm.training.start import initial_model
from ldm.util import instantiate_from_config, load_config
from tests.conftest import ROOT
from tests.miniworld.conftest import MINI, make_commands


def test_the_prior_learns_from_pictures_alone():
    """Its loss is that of the 4 latent channels with the learned vector; references do not matter."""
    config = load_config(OmegaConf.merge(OmegaConf.load(MINI_CONFIG), OmegaConf.load(MINI / "prior.yaml")))
    model = instantiate_from_config(config["model"], torch.nn.Module).train()
    torch.nn.init.normal_(model.model.diffusion_model.out[2].weight, std=0.01)  # it starts at zero
    model.setup("fit")
    side = model.image_size * model.first_stage_model.factor
    batch = {"GT": torch.rand(2, 3, side, side) * 2 - 1, "ref_imgs": torch.full((2, 3, 224, 224), torch.nan)}
    draws = Draws.from_seeds([(0,), (1,)], (4, 16, 16), 1000, "cpu")
    loss, _ = model.batch_loss(batch, draws, 0.2)
    posterior = model.first_stage_model.encode(batch["GT"])
    z = model.scale_factor * (posterior.mean + posterior.std * draws.noise_gt)
    abar = model.alphas_cumprod[draws.t].view(-1, 1, 1, 1)
    x = abar.sqrt() * z + (1 - abar).sqrt() * draws.noise
    eps = model.model(x, draws.t, unconditional_token(model, 2))
    torch.testing.assert_close(loss, (eps - draws.noise).square().mean())
    loss.backward()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[0] for name in names} == {"model", "learnable_vector"}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_every_row_of_table_3_starts_from_the_prior(tmp_path):
    """The baseline is the exception: its UNet starts from random weights."""
    prior = OmegaConf.merge(OmegaConf.load(MINI_CONFIG), OmegaConf.load(MINI / "prior.yaml"))
    model = instantiate_from_config(prior["model"], torch.nn.Module)
    write_checkpoint(widen(model.state_dict()), tmp_path / "prior.safetensors")
    words = [word for command in make_commands("mini-table3") for word in command]
    rows = {Path(word).stem for word in words if word.startswith("configs/ablation/")}
    assert rows == {path.stem for path in ROOT.glob("configs/ablation/*.yaml")}
    for row in sorted(rows):
        parts = (MINI_CONFIG, ROOT / f"configs/ablation/{row}.yaml", MINI / "budget.yaml")
        config = OmegaConf.merge(*map(OmegaConf.load, parts))
        started = initial_model(config, str(tmp_path / "prior.safetensors")).state_dict()
        name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
        assert torch.equal(started[name], model.state_dict()[name]) == (row != "baseline")
        assert torch.equal(started["first_stage_model.quant_conv.weight"], model.first_stage_model.quant_conv.weight)
