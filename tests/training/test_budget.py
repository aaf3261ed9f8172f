"""lightning.minutes: a run that ends in time, with its schedule complete; and what it logs, as curves."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader

from ldm.models.base import LossModel
from ldm.training.budget import TimeBudget
from ldm.training.curves import COLUMNS, draw_curves, read_curves, write_csv
from ldm.util import UserError, load_config

SCHEDULE = {
    "target": "ldm.lr_scheduler.LambdaLinearScheduler",
    "params": {"warm_up_steps": [100], "cycle_lengths": [1000], "f_start": [0.0], "f_max": [1.0], "f_min": [0.25]},
}


@pytest.fixture
def clock(monkeypatch):
    """`clock.now`, the time in seconds of budgets."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("ldm.training.budget.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Line(LossModel):
    """Fits a line. Its gradients are clipped."""

    def __init__(self, scheduler_config, clock=None):
        super().__init__()
        self.clock = clock
        self.learning_rate, self.scheduler_config = 0.1, scheduler_config
        self.line = torch.nn.Linear(2, 1)
        self.norms, self.rates = [], []

    def losses(self, batch):
        self.clock.now += 0.5 if self.global_step % 2 else 0.25  # a step's costs vary
        return {"loss": 100 * (self.line(batch["x"]).float() - 3).square().mean()}

    def on_before_zero_grad(self, optimizer):
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(torch.cat([each.flatten() for each in gradients]).norm().item())

    def on_train_batch_start(self, *_):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])


def fit(budget, schedule, clock, **options):
    model = Line(schedule, clock)
    trainer = lightning.Trainer(
        callbacks=[budget], accelerator="cpu", precision="bf16-mixed", gradient_clip_val=0.5, max_epochs=-1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader([{"x": torch.ones(2)}] * 64, batch_size=8))
    return model, trainer


@pytest.mark.filterwarnings("ignore")
def test_a_run_ends_in_time_with_its_schedule_complete(clock):
    """The rate after a share of the time is the schedule's after that share of its steps. All gradients are clipped."""
    model, trainer = fit(TimeBudget(1, SCHEDULE), SCHEDULE, clock)
    assert trainer.global_step == 160 and clock.now == 160
    passed = np.arange(80)[:, None] * 0.75 / 60 + np.array([0, 0.25 / 60])
    expected = np.where(passed < 0.1, passed / 0.1, 0.25 + 0.75 * (1 - passed))
    np.testing.assert_allclose(np.array(model.rates) / 0.1, expected.flatten(), atol=1e-6)
    assert max(model.norms) == pytest.approx(0.5, abs=1e-3)


def test_time_continues_in_a_resumed_run(clock):
    budget = TimeBudget(1, SCHEDULE)
    clock.now += 15
    state = budget.state_dict()
    clock.now += 1000
    resumed = TimeBudget(1, SCHEDULE)
    resumed.load_state_dict(state)
    assert resumed.share() == 0.25
    clock.now += 30
    assert resumed.share() == 0.75
    clock.now += 100
    assert resumed.share() == 1


def test_of_several_processes_the_first_has_the_clock():
    """What is broadcast decides about the rate and the end, not this process's own time."""
    budget, told = TimeBudget(1, SCHEDULE), [0.5, 0.99, 1.0]
    scheduler = SimpleNamespace(lr_lambdas=[lambda step: step])
    strategy = SimpleNamespace(broadcast=lambda own: told.pop(0))
    trainer = SimpleNamespace(
        strategy=strategy, lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)], should_stop=False
    )
    budget.on_train_start(trainer, None)
    assert scheduler.lr_lambdas[0](7) == 500
    minutes = []
    model = SimpleNamespace(log=lambda name, value, **_: minutes.append((name, value)))
    budget.on_train_batch_end(trainer, model)
    assert not trainer.should_stop
    budget.on_train_batch_end(trainer, model)
    assert trainer.should_stop and minutes == [("minutes", 0.99), ("minutes", 1.0)]


def test_mistakes():
    for minutes in (0, -1, "long"):
        with pytest.raises(UserError, match="give the minutes"):
            TimeBudget(minutes, SCHEDULE)
    with pytest.raises(UserError, match=r"add model\.params\.scheduler_config"):
        TimeBudget(1, None)
    with pytest.raises(UserError, match=r"10,000,000,000,000 steps.*in proportion"):
        TimeBudget(1, load_config("configs/v1.yaml").model.params.scheduler_config)


def test_curves(tmp_path):
    """Values of training have the minutes of their line, those of validation the last minutes before them."""
    folder = tmp_path / "run/csv/version_0"
    folder.mkdir(parents=True)
    lines = ["step,lr,minutes,train/loss,val/loss", "0,1,0.1,8.0,", "1,1,,,4.0", "2,1,0.3,2.0,", "2,1,,,nan"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    rows = read_curves("run", tmp_path / "run")
    assert rows[:3] == [("run", 0, 0.1, "train/loss", 8.0), ("run", 1, 0.1, "val/loss", 4.0),
                        ("run", 2, 0.3, "train/loss", 2.0)]  # fmt: skip
    write_csv(rows, tmp_path / "curves.csv")
    read = list(csv.reader((tmp_path / "curves.csv").read_text().splitlines()))
    assert read[0] == list(COLUMNS) and read[1] == ["run", "0", "0.1", "train/loss", "8.0"]
    picture = draw_curves(rows, {"run": ("train/loss", "val/loss"), "missing": ("train/loss", "val/loss")})
    assert picture.height > 480
    red = np.asarray(picture)[30:216].astype(int) @ (1, -1, 0) > 150
    y, x = (axis.mean() for axis in np.nonzero(red))  # the one point of validation: half of the steps
    assert (x, y + 30) == pytest.approx((240, 120), abs=1)


def test_curves_of_a_run_that_was_resumed_are_in_order(tmp_path):
    for number in (10, 2, 0):
        folder = tmp_path / f"csv/version_{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,minutes,train/loss\n{number},{number},1.0\n")
    assert [row[1] for row in read_curves("run", tmp_path)] == [0, 2, 10]
