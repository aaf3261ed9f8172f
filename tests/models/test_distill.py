"""Distillation of guidance: compared with closed forms, and from main.py to an edit at scale 1."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.conventions import INPAINT, NOISY_LATENT
from ldm.models.diffusion.conditioning import reference_token, unconditional_token
from ldm.models.diffusion.draws import Draws
from ldm.training.start import initial_model
from tests.conftest import ROOT, edited_pixels, take_steps, training_batch

TINY = ROOT / "configs/tiny.yaml"
CONFIG = OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.load(ROOT / "configs/distill.yaml"))
DRAWS = Draws.from_seeds([(0,), (1,)], (4, 16, 16), 1000, "cpu")


@pytest.fixture
def model(tiny):
    model = initial_model(CONFIG, str(tiny)).train()
    model.setup("fit")
    return model


class FromContext(torch.nn.Module):
    """eps = v + scale (m - v), where m is the mean of the context: guidance of a UNet that returns m."""

    def __init__(self, v=0.0, scale=1.0):
        super().__init__()
        self.v, self.scale = v, scale

    def forward(self, x, t, context):
        m = context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return (self.v + self.scale * (m - self.v)).expand(-1, 4, *x.shape[2:])


@pytest.mark.parametrize(("scale", "right"), [(5.0, True), (4.0, False), (1.0, False)])
def test_a_student_equal_to_the_guided_teacher_has_no_loss(model, scale, right):
    model.model, model.teacher = FromContext(float(model.learnable_vector.mean()), scale), FromContext()
    loss, _ = model.batch_loss(training_batch(), DRAWS, 0.0)
    assert (loss < 1e-9) == right


def test_the_first_loss_is_the_effect_of_guidance(model):
    """The student starts as the teacher, so its error is (s - 1) (eps(x, c) - eps(x, v))."""
    batch = training_batch()
    with torch.no_grad():
        loss, _ = model.batch_loss(batch, DRAWS, 0.0)
        start = model.get_input(batch, noise=DRAWS.noise_gt, noise_inpaint=DRAWS.noise_inpaint)
        noisy = model.q_sample(start[:, NOISY_LATENT], DRAWS.t, DRAWS.noise)
        x = torch.cat([noisy, start[:, INPAINT]], dim=1)
        c, v = reference_token(model, batch["ref_imgs"]), unconditional_token(model, 2)
        gap = model.apply_model(x, DRAWS.t, c) - model.apply_model(x, DRAWS.t, v)
    torch.testing.assert_close(loss, (4 * gap).square().mean(), rtol=1e-4, atol=0)
    assert loss > 0


def test_training_changes_only_the_student(model, tiny):
    """The loss falls; teacher, reference encoder and v stay what they were."""
    batch, given = training_batch(), read_checkpoint(tiny)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = take_steps(model, optimizer, batch, DRAWS, count=6)
    assert losses[-1] < 0.7 * losses[0], losses
    own = model.state_dict()
    for name, tensor in given.items():
        if name.startswith("model."):
            assert torch.equal(own[name.replace("model.", "teacher.", 1)], tensor), name
        elif name in own:
            assert torch.equal(own[name], tensor), name
    changed = [name for name in given if name.startswith("model.") and not torch.equal(own[name], given[name])]
    assert len(changed) > 50


def test_main_trains_a_student_for_scale_1(script, edit_example, tiny, training_folder, tmp_path, monkeypatch):
    """A resumed run has the same teacher. Its checkpoint loads as an ordinary model, the student, which edits at
    --scale 1: it repaints the region as the student's weights alone do."""
    monkeypatch.chdir(tmp_path)
    words = ["--pretrained_model", tiny, "--accelerator", "cpu", "--devices", 1, "--no-test", "--max_steps", 2]
    words += [f"data.params.dataset_dir={training_folder}", "data.params.batch_size=2", "data.params.num_workers=0"]
    words += ["lightning.images.steps=1", "lightning.images.count=1", "--enable_progress_bar", False]
    code, out, err = script("main", "--base", TINY, ROOT / "configs/distill.yaml", "--project", "run", *words)
    assert code == 0 and "trained to step 2" in out, err
    code, out, err = script("main", "-r", "run", "--max_steps", 3)
    assert code == 0 and "trained to step 3" in out, err

    given, last = read_checkpoint(tiny), torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    teacher = {name: tensor for name, tensor in last.items() if name.startswith("teacher.")}
    assert len(teacher) == sum(name.startswith("model.") for name in given)
    assert all(torch.equal(tensor, given[name.replace("teacher.", "model.", 1)]) for name, tensor in teacher.items())
    assert read_checkpoint("run/checkpoints/last.ckpt").keys() == given.keys()
    student = load_model(TINY, "run/checkpoints/last.ckpt").state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in student.items())
    monkeypatch.chdir(ROOT)
    write_checkpoint(student, tmp_path / "student.safetensors")
    for name in ("run/checkpoints/last.ckpt", "student.safetensors"):
        code, _, err = edit_example(tmp_path / Path(name).stem, tmp_path / name, "--scale", 1)
        assert code == 0, err
    painted, region = edited_pixels(tmp_path / "last"), Image.open(ROOT / "examples/mask/example_2.png").convert("L")
    photo, inside = Image.open(ROOT / "examples/image/example_2.jpg").convert("RGB"), np.asarray(region) == 255
    assert np.array_equal(painted, edited_pixels(tmp_path / "student"))
    assert (painted != np.asarray(photo)).any(axis=2)[inside].mean() > 0.9
