"""What every model that main.py trains has in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.models.diffusion.draws import TRAINING
from ldm.util import UserError, instantiate_from_config


class TrainableModel(pl.LightningModule):
    """AdamW over what is trainable, with the schedule of `scheduler_config` if there is one.

    For training, set `learning_rate` and `seed`. monitor: by which logged value checkpoints are compared."""

    learning_rate: float
    seed: int = 0
    monitor: str | None = None
    scheduler_config: Mapping[str, Any] | None = None
    use_ema: bool = False

    def configure_optimizers(self) -> dict[str, Any] | torch.optim.Optimizer:
        # Lightning clips no gradients of an optimizer that, fused, could unscale them itself
        fused = self.device.type == "cuda" and not (self._trainer and self.trainer.gradient_clip_val)
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate, fused=fused or None)
        if self.scheduler_config is None:
            return optimizer
        factor = instantiate_from_config(self.scheduler_config, LambdaLinearScheduler)
        # a function, whose settings are not put into checkpoints: a run that goes on follows its config
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """A run that goes on may have been given another learning rate than its checkpoint's."""
        for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            scheduler.base_lrs = [self.learning_rate for _ in scheduler.base_lrs]
            for group, factor in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
                group["initial_lr"] = self.learning_rate
                group["lr"] = self.learning_rate * factor(scheduler.last_epoch)

    def compile_networks(self) -> None:
        """torch.compile of what a training step spends its time in; shapes have to stay the same."""
        raise UserError("--compile: there is nothing to compile in this config's model; leave it out")

    def export(self, folder: Path) -> None:
        """Called at the end of training: writes to `folder` what others read of the model beside its checkpoint."""

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, batch_idx, "val")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, batch_idx, "test")

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, name: str) -> None:
        """Logs what the batch shows, each value under `name`/."""
        raise NotImplementedError

    def training_batch_index(self) -> int:
        """Of the training batch under way, counted over all epochs, from 0."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1

    def sample_positions(self, size: int) -> list[int]:
        """The places of this process's samples in the batch of all processes, which take turns (see EpochSampler)."""
        return [i * self.trainer.world_size + self.trainer.global_rank for i in range(size)]

    def training_seeds(self, size: int) -> list[tuple[int, ...]]:
        """A seed for each of this process's `size` samples of the current training batch."""
        batch = self.training_batch_index()
        return [(self.seed, TRAINING, batch, position) for position in self.sample_positions(size)]


class LossModel(TrainableModel):
    """A model whose `losses(batch)` says all: `loss`, which training lowers, and what else validation shows."""

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss, size = self.losses(batch)["loss"], len(next(iter(batch.values())))
        self.log("train/loss", loss.detach(), on_step=True, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, name: str) -> None:
        found = {f"{name}/{key}": value for key, value in self.losses(batch).items()}
        self.log_dict(found, on_epoch=True, sync_dist=True, batch_size=len(next(iter(batch.values()))))
