"""Learned tokens: their files, what they are learned by, points between them, and edits with them."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.spatial import geometric_slerp
from torch import nn

from ldm.conventions import NOISY_LATENT
from ldm.methods.learn_token import Learning, learn_token, token_loss
from ldm.methods.tokens import LearnedToken, between, mixed, read_token, write_token
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError
from tests.conftest import ROOT

WIDTH = 6


def a_token(width: int = WIDTH, **fields) -> LearnedToken:
    token, zeros = torch.randn(1, width), torch.zeros(1, width)
    return LearnedToken(token, torch.zeros(8, 8, 3, dtype=torch.uint8), zeros, zeros, **fields)


class Toy(nn.Module):
    """A denoiser whose eps is B c + A x at every position: the squared error is quadratic in c."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.randn(4, 9, dtype=torch.float64), torch.randn(4, WIDTH, dtype=torch.float64)

    def forward(self, x, t, contexts):
        fixed = torch.einsum("oc,bchw->bohw", self.a, x) * (1 + t.view(-1, 1, 1, 1) / 1000)
        return fixed + torch.einsum("od,bmd->bo", self.b, contexts)[..., None, None]


def toy_views(count: int = 3) -> torch.Tensor:
    views = torch.randn(count, 9, 5, 5, dtype=torch.float64)
    views[:, 8] = 1
    views[:, 8, 1:4, 1:3] = 0
    return views


def test_the_loss_has_the_gradient_of_its_closed_form():
    toy, views, token = Toy(), toy_views(), torch.randn(1, WIDTH, dtype=torch.float64, requires_grad=True)
    t, abar = torch.tensor([10, 500, 900]), torch.tensor([0.9, 0.4, 0.05], dtype=torch.float64)
    noise = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    loss = token_loss(toy, views, t, abar, noise, token)
    loss.backward()
    x_t = abar.view(-1, 1, 1, 1).sqrt() * views[:, NOISY_LATENT] + (1 - abar).view(-1, 1, 1, 1).sqrt() * noise
    residual = toy(torch.cat([x_t, views[:, 4:]], 1), t, token.detach().expand(3, 1, -1)) - noise
    inside = residual[:, :, 1:4, 1:3]  # the six positions of the region, four channels
    torch.testing.assert_close(loss.detach(), inside.square().mean())
    gradient = 2 * torch.einsum("bohw,od->d", inside, toy.b) / inside.numel()
    torch.testing.assert_close(token.grad[0], gradient)


def test_learning_lowers_the_loss_and_goes_on_to_the_bit_where_it_stopped(tmp_path):
    torch.manual_seed(1)
    toy, views, schedule = Toy(), toy_views(), NoiseSchedule.linear(1000)
    apply_model = lambda x, t, c: toy(x.double(), t, c.double()).float()  # noqa: E731
    start, how = a_token(), Learning(steps=30, batch=4, rate=0.1)
    steps = list(learn_token(apply_model, views.float(), start, schedule, how))
    losses = [loss for _, loss in steps]
    assert len(steps) == 30 and np.mean(losses[-8:]) < np.mean(losses[:8])
    *_, (half, _) = islice(learn_token(apply_model, views.float(), start, schedule, how), 11)
    write_token(half, tmp_path / "half.safetensors")
    read = read_token(tmp_path / "half.safetensors")
    *_, (end, _) = learn_token(apply_model, views.float(), read, schedule, how)
    assert end.steps == 30 and torch.equal(end.token, steps[-1][0].token)


def test_between_is_spherical_for_tokens_of_one_length():
    a, b = (x / x.norm() for x in torch.randn(2, WIDTH, dtype=torch.float64))
    for share in (0.0, 0.3, 1.0):
        expected = geometric_slerp(a.numpy(), b.numpy(), share)
        np.testing.assert_allclose(between(a[None], b[None], share)[0], expected, atol=1e-12)
    assert between(2 * a, 4 * b, 0.5).norm() == pytest.approx(3.0)
    torch.testing.assert_close(between(a, 3 * a, 0.5), 2 * a)  # of one direction


@pytest.mark.parametrize("content", [b"", b"no token", None])
def test_a_file_that_is_no_token_is_told(tmp_path, content):
    path = tmp_path / "my.safetensors"
    if content is None:
        from safetensors.torch import save_file

        save_file({"token": torch.zeros(1, 4)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="scripts/learn_object"):
        read_token(path)


def test_a_token_stands_where_a_reference_does(edit, example, tmp_path):
    """A picture's own token, in a file, gives the picture's edit; another model's is refused."""
    from ldm.models.diffusion.conditioning import reference_token

    how = {"steps": 2, "height": 64, "width": 96, "progress": False}
    image, mask, reference = example["image"], example["mask"], example["reference"]
    inputs = edit.prepare(image, mask, reference)
    with torch.no_grad():
        own = reference_token(edit.networks, inputs.reference)[0]
    picture = torch.from_numpy(np.array(reference.convert("RGB").resize((16, 16))))
    path = tmp_path / "own.safetensors"
    write_token(LearnedToken(own, picture, own, own), path)
    expected = edit(image, mask, reference, **how)
    assert np.array_equal(edit(image, mask, path, **how), expected)
    assert np.array_equal(edit(image, mask, (reference, str(path)), mix=0.7, **how), expected)
    v = edit.model.learnable_vector.detach().flatten()
    write_token(LearnedToken(own, picture, own, own, v=v + 0.3 * torch.randn_like(v)), path)  # as fine-tuned
    assert np.array_equal(edit(image, mask, path, **how), expected)
    others = {"a token of the shape": a_token(own.shape[1] + 1), "a token of another model": a_token(len(v), v=-v)}
    for words, token in others.items():
        write_token(token, path)
        with pytest.raises(UserError, match=f"own.safetensors is {words}.*: learn it again with this model"):
            edit(image, mask, path, **how)


def test_mixing_is_of_two_references_or_three(edit, example):
    with pytest.raises(UserError, match="two references, or of three"):
        edit(example["image"], example["mask"], example["reference"], mix=0.5, steps=2)


def test_of_three_references_the_first_moves_by_the_difference_of_the_others(edit, example):
    c, a, b = torch.randn(3, 1, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixed(torch.stack([c, a, b]), 0.3) - c, 0.3 * (b - a))

    def painted(*references, **how):
        return edit(example["image"], example["mask"], references, steps=2, height=64, width=64, progress=False, **how)

    first, other = example["reference"], ImageOps.invert(example["reference"].convert("RGB"))
    assert np.array_equal(painted(first, other, other, mix=0.7), painted(first))
    moved = np.asarray(painted(first, first, other, mix=1.0), dtype=int)
    assert np.abs(moved - painted(other)).max() <= 1 < np.abs(moved - painted(first)).max()


def test_the_command_learns_stops_and_goes_on(script, tiny, tmp_path, edit_example):
    picture, out = ROOT / "examples/reference/example_2.jpg", tmp_path / "mine.safetensors"
    flags = ["--config", ROOT / "configs/tiny.yaml", "--ckpt", tiny, "--device", "cpu", "--out", out, "--steps", 2]
    flags += ["--box", "20,20,200,200", "--batch_size", 2, "--every", 2]
    code, _, err = script("learn_object", picture, *flags, "--learning_steps", 2)
    assert code == 0, err
    code, written, err = script("learn_object", picture, *flags, "--learning_steps", 3)
    assert code == 0 and "1 steps, 3 in all" in written, err
    assert Image.open(tmp_path / "mine/000003.png").size == (128, 128)
    code, _, err = script("learn_object", picture, *flags, "--learning_steps", 3)
    assert code == 2 and "give more --learning_steps" in err
    code, _, err = script("learn_object", picture, *flags, "--seed", 5)
    assert code == 2 and "learned from other pictures" in err
    code, _, err = script("learn_object", picture, *flags, "--prior", picture)
    assert code == 2 and "a token does not change" in err
    code, _, err = edit_example(tmp_path, tiny, "--reference_path", out)
    assert code == 2 and "regions" in err  # two references for one region
    code, _, err = script("learn_object", picture, picture, *flags)
    assert code == 2 and "2 pictures and 1 regions" in err
    code, _, err = script("learn_object", picture, *flags[:-6], "--out", tmp_path / "b.safetensors")
    assert code == 2 and "nothing says where the object is" in err
