"""A run that ends after a given time, with its learning rate's schedule complete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.util import UserError, instantiate_from_config

LONGEST_RUN = 10**9  # steps; published configs give a constant rate a cycle of 10^13


class TimeBudget(Callback):
    """Ends training after `minutes` at the latest, with what is validated and drawn until then; a last validation
    follows. Spreads the schedule of the learning rate over them: the share of the time that has passed is the share of
    the schedule's steps, warm-up included, whatever a step costs and however that changes. max_steps and max_epochs can
    end the run before. Logs the minutes.

    schedule: the model's scheduler_config. A resumed run continues its time. Of several processes the first has the
    clock. Raises UserError: no time, no schedule to spread, or one that is longer than any run."""

    def __init__(self, minutes: float, schedule: Mapping[str, Any] | None):
        if not (isinstance(minutes, (int, float)) and minutes > 0):
            raise UserError(f"config: lightning.minutes is {minutes}: give the minutes to train for")
        if schedule is None:
            raise UserError(
                "config: lightning.minutes needs a schedule of the learning rate: add model.params.scheduler_config"
            )
        self.steps = instantiate_from_config(schedule, LambdaLinearScheduler).ends[-1]
        if self.steps > LONGEST_RUN:
            raise UserError(
                f"config: cycle_lengths are {self.steps:,} steps, of which lightning.minutes would make the warm-up"
                " nothing: set cycle_lengths and warm_up_steps in proportion, for instance to [1000] and [30]"
            )
        self.seconds = 60 * minutes
        self.start = time.monotonic()

    def share(self) -> float:
        """Of the time, at most 1."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Lets the schedule of each optimizer follow the time."""
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            scheduler.lr_lambdas = [
                lambda _, factor=factor: factor(trainer.strategy.broadcast(self.share()) * self.steps)
                for factor in scheduler.lr_lambdas
            ]

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        share = trainer.strategy.broadcast(self.share())
        pl_module.log("minutes", share * self.seconds / 60, on_step=True, batch_size=1)
        if share >= 1:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"passed": time.monotonic() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = time.monotonic() - state_dict["passed"]
