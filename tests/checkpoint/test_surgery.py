"""4 -> 9 input channels, A + (B - C), half precision."""

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.checkpoint.names import FIRST_CONV, UNET
from ldm.checkpoint.surgery import add_difference, halve, widen
from ldm.util import UserError, instantiate_from_config
from tests.checkpoint.conftest import assert_same_tensors


def test_half_precision(tensors, golden_config, tmp_path):
    half = halve(tensors)
    assert half[FIRST_CONV].dtype == torch.float16
    assert half["alphas_cumprod"].dtype == torch.float32
    write_checkpoint(half, tmp_path / "half.safetensors")
    model = load_model(golden_config, tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.state_dict()[FIRST_CONV], half[FIRST_CONV].float())
    # as other tools halve: the schedule with the rest
    for dtype in (torch.float16, torch.bfloat16):
        save_file({name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}, tmp_path / "h.pt")
        assert torch.equal(load_model(golden_config, tmp_path / "h.pt").betas, tensors["betas"])


@torch.no_grad()
def test_a_widened_model_computes_what_the_prior_does(sd_folder, golden_config, tmp_path, script):
    from diffusers import UNet2DConditionModel

    code, _, _ = script("modify_checkpoints", "--input", sd_folder, "--output", tmp_path / "wide.ckpt")
    assert code == 0
    wide = read_checkpoint(tmp_path / "wide.ckpt")
    assert wide[FIRST_CONV].shape == (32, 9, 3, 3) and not wide[FIRST_CONV][:, 4:].any()
    unet = instantiate_from_config(golden_config["model"]["params"]["unet_config"]).eval()
    unet.load_state_dict({name.removeprefix(UNET): t for name, t in wide.items() if name.startswith(UNET)})
    theirs = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    x, t, context = torch.randn(1, 9, 8, 8), torch.tensor([10]), torch.randn(1, 7, 40)
    torch.testing.assert_close(unet(x, t, context), theirs(x[:, :4], t, context).sample, rtol=0, atol=2e-5)


def test_widening_twice_is_refused(tensors):
    with pytest.raises(UserError, match="has 9 input channels already: use it without widening"):
        widen(tensors)


def test_add_difference(tensors):
    base = {name: t for name, t in tensors.items()}
    base[FIRST_CONV] = tensors[FIRST_CONV][:, :4] * 0.5
    tuned = {name: t + 0.25 if t.is_floating_point() else t for name, t in base.items()}
    out = add_difference(tensors, tuned, base)
    torch.testing.assert_close(out[FIRST_CONV][:, :4], tensors[FIRST_CONV][:, :4] + 0.25)
    assert torch.equal(out[FIRST_CONV][:, 4:], tensors[FIRST_CONV][:, 4:])
    name = "first_stage_model.decoder.conv_in.bias"
    torch.testing.assert_close(out[name], tensors[name] + 0.25)
    assert torch.equal(out["learnable_vector"], tensors["learnable_vector"])
    assert_same_tensors(add_difference(tensors, base, base), tensors)
    with pytest.raises(UserError, match="has the shapes"):  # the models swapped
        add_difference(base, tensors, tensors)
    with pytest.raises(UserError, match="A has no UNet"):
        add_difference({"a": torch.ones(1)}, tuned, base)
    with pytest.raises(UserError, match=r"B lacks first_stage_model\.decoder\.conv_in\.bias: use a"):
        add_difference(tensors, {}, base)
    with pytest.raises(UserError, match="has the shapes"):
        add_difference(tensors, tuned, {**base, name: torch.zeros(3)})
