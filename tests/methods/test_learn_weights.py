"""Learning an object by few numbers of the model: the loss, prior preservation, runs that go on, the command."""

from itertools import islice

import numpy as np
import torch
from torch import nn

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.adapters import merge, read_adapter, read_stack
from ldm.conventions import NOISY_LATENT
from ldm.methods.learn_token import Learning, draw_batch, token_loss
from ldm.methods.learn_weights import Examples, learn_weights
from ldm.models.diffusion.schedule import NoiseSchedule
from tests.conftest import ROOT, edited_pixels

SCHEDULE = NoiseSchedule.linear(1000)


class Toy(nn.Module):
    """eps is A x + B c at every position."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(0.1 * torch.randn(4, 9)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x, t, contexts):
        moved = torch.einsum("od,bmd->bo", self.b, contexts)[..., None, None]
        return torch.einsum("oc,bchw->bohw", self.a, x) + moved


def some(count=3):
    views = torch.randn(count, 9, 4, 4)
    views[:, 8] = 0  # the region is everything
    return Examples(views, torch.randn(count, 1, 6))


def test_the_step_follows_the_gradient_of_both_losses():
    """By hand for the first of Adam's steps, which is its rate in the direction of each gradient's sign."""
    torch.manual_seed(3)
    toy, mine, prior, how = Toy(), some(), some(2), Learning(1, 2, 0.01)
    before, abars = toy.b.detach().clone(), torch.from_numpy(SCHEDULE.alphas_cumprod).float()
    gradients = []
    for examples, first in ((mine, 0), (prior, 2)):
        chosen, t, noise = draw_batch(how, 0, examples.views, 1000, first)
        abar = abars[t].view(-1, 1, 1, 1)
        x = examples.views[chosen].clone()
        x[:, NOISY_LATENT] = abar.sqrt() * x[:, NOISY_LATENT] + (1 - abar).sqrt() * noise
        residual = toy(x, t, examples.tokens[chosen]) - noise
        contexts = examples.tokens[chosen, 0]
        gradients.append((2 * torch.einsum("bohw,bd->od", residual, contexts) / residual.numel()).detach())
    [(progress, _)] = learn_weights(toy, {"b": toy.b}, mine, prior, 3.0, SCHEDULE, how)
    expected = before - 0.01 * (gradients[0] + 3.0 * gradients[1]).sign()
    torch.testing.assert_close(toy.b.detach(), expected, atol=1e-4, rtol=1e-4)
    assert progress.steps == 1 and torch.equal(progress.trained["b"], toy.b)


def loss_of(toy, examples):
    """The mean over many draws."""
    with torch.no_grad():
        how, abars = Learning(1, 200, 0.0), torch.from_numpy(SCHEDULE.alphas_cumprod).float()
        chosen, t, noise = draw_batch(how, 99, examples.views, 1000)
        total = token_loss(toy, examples.views[chosen], t, abars[t], noise, examples.tokens[chosen])
    return float(total)


def test_the_prior_keeps_its_loss_low_and_learning_goes_on_to_the_bit():
    """The object's token is nearly the prior's, and its picture the opposite."""
    torch.manual_seed(3)
    prior, how = some(), Learning(60, 4, 0.02)
    mine, state = Examples(-prior.views + 2, prior.tokens + 0.1), Toy().state_dict()
    ends, losses = [], []
    for given in (None, prior):
        toy = Toy()
        toy.load_state_dict(state)
        *_, (end, _) = learn_weights(toy, {"b": toy.b}, mine, given, 1.0, SCHEDULE, how)
        ends.append(end.trained["b"].clone())
        losses.append(loss_of(toy, prior))
    assert losses[1] < losses[0]

    toy = Toy()
    toy.load_state_dict(state)
    *_, (half, _) = islice(learn_weights(toy, {"b": toy.b}, mine, None, 1.0, SCHEDULE, how), 20)
    other = Toy()
    other.load_state_dict(state)
    *_, (end, _) = learn_weights(other, {"b": other.b}, mine, None, 1.0, SCHEDULE, how, half)
    assert end.steps == 60 and torch.equal(end.trained["b"], ends[0])


def test_the_command_learns_an_adapter_stops_and_goes_on(script, tiny, tmp_path, edit_example):
    picture, out = ROOT / "examples/reference/example_2.jpg", tmp_path / "mine.safetensors"
    flags = ["--config", ROOT / "configs/tiny.yaml", "--ckpt", tiny, "--device", "cpu", "--steps", 2, "--train", "lora"]
    flags += ["--box", "20,20,200,200", "--batch_size", 2, "--learning_rate", 0.01, "--every", 2]
    flags += ["--prior", ROOT / "examples/reference/example_1.jpg"]
    for steps in (1, 2):
        code, _, err = script("learn_object", picture, *flags, "--out", out, "--learning_steps", steps)
        assert code == 0, err
    assert (tmp_path / "mine/000002.png").exists()
    at_once = tmp_path / "at_once.safetensors"
    code, _, err = script("learn_object", picture, *flags, "--out", at_once, "--learning_steps", 2)
    assert code == 0, err
    learned, expected = read_adapter(out), read_adapter(at_once)
    assert all(torch.equal(learned.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert merge(read_checkpoint(tiny), read_stack(out))

    code, _, err = script("learn_object", picture, *flags, "--out", out, "--learning_steps", 2)
    assert code == 2 and "give more --learning_steps" in err
    code, _, err = script("learn_object", picture, *flags, "--out", out, "--prior_weight", 2)
    assert code == 2 and "learned from other pictures or in another way" in err
    (tmp_path / "mine/last.ckpt").unlink()
    code, _, err = script("learn_object", picture, *flags, "--out", out, "--learning_steps", 3)
    assert code == 2 and "its learning cannot go on" in err
    assert edit_example(tmp_path / "a", tiny)[0] == 0
    code, _, err = edit_example(tmp_path / "b", tiny, "--lora", out)
    assert code == 0 and np.abs(edited_pixels(tmp_path / "a") - edited_pixels(tmp_path / "b")).max() > 0, err
