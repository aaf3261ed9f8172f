"""A run that ends after a given time, with its learning rate's schedule complete."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from ldm.models.base import TrainableModel
from ldm.util import UserError


class TimeBudget(Callback):
    """Ends training after `minutes`, validations and pictures included, and spreads the schedule of the learning rate
    over them: the share of the time that has passed is the share of the schedule's steps, whatever a step costs and
    however that changes. Logs the minutes.

    A resumed run continues its time. Raises UserError: no time, or no schedule to spread."""

    def __init__(self, minutes: float):
        if not (isinstance(minutes, (int, float)) and minutes > 0):
            raise UserError(f"config: lightning.minutes is {minutes}: give the minutes to train for")
        self.seconds = 60 * minutes
        self.start = time.monotonic()

    def share(self) -> float:
        """Of the time, at most 1."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.follow(trainer, pl_module)

    def follow(self, trainer: lightning.Trainer, model: TrainableModel) -> None:
        """Lets the schedule of each optimizer follow the time."""
        if model.scheduler_config is None:
            raise UserError(
                "lightning.minutes is for learning rates with a schedule: add model.params.scheduler_config"
            )
        steps = sum(model.scheduler_config["params"]["cycle_lengths"])
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            scheduler.lr_lambdas = [
                lambda _, factor=factor: factor(self.share() * steps) for factor in scheduler.lr_lambdas
            ]

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        share = self.share()
        pl_module.log("minutes", share * self.seconds / 60, on_step=True, batch_size=1)
        if trainer.strategy.reduce_boolean_decision(share >= 1, all=False):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"passed": time.monotonic() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = time.monotonic() - state_dict["passed"]
