"""The base class of every model that main.py trains: a Lightning module with its optimizer, schedule and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor

from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.models.diffusion.draws import TRAINING
from ldm.util import UserError, instantiate_from_config


class TrainableModel(pl.LightningModule):
    """Trains by AdamW all parameters that require a gradient, with the learning rate's schedule of `scheduler_config`.

    Before training, set `learning_rate` and `seed`. monitor: the logged value by which checkpoints are compared.
    Subclasses implement training_step and evaluation_step."""

    learning_rate: float
    seed: int = 0
    monitor: str | None = None
    scheduler_config: Mapping[str, Any] | None = None
    use_ema: bool = False

    def configure_optimizers(self) -> dict[str, Any] | torch.optim.Optimizer:
        scaled = self._trainer and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        fused = self.device.type in ("cuda", "cpu") and not (scaled and self.trainer.gradient_clip_val)
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate, fused=fused or None)
        if self.scheduler_config is None:
            return optimizer
        factor = instantiate_from_config(self.scheduler_config, LambdaLinearScheduler)
        # a lambda, whose state LambdaLR does not store in checkpoints, so that a resumed run follows its config
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning does, but also for a fused optimizer in bfloat16. Lightning refuses that in any mixed precision,
        since such an optimizer may unscale gradients itself; in bfloat16 they are not scaled."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        """Sets the learning rate of a resumed run, which may differ from the one in its checkpoint."""
        for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            scheduler.base_lrs = [self.learning_rate for _ in scheduler.base_lrs]
            for group, factor in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
                group["initial_lr"] = self.learning_rate
                group["lr"] = self.learning_rate * factor(scheduler.last_epoch)

    def compile_networks(self) -> None:
        """Compiles, by torch.compile, the networks that a training step runs; shapes must then stay the same."""
        raise UserError("--compile has no effect on this config's model: leave it out")

    def export(self, folder: Path) -> None:
        """Called at the end of training. Writes the files besides the checkpoint that other programs read to `folder`;
        by default none."""

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, batch_idx, "val")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, batch_idx, "test")

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, stage: str) -> None:
        """Logs the losses of a batch under `stage`/, which is val or test."""
        raise NotImplementedError

    def training_batch_index(self) -> int:
        """Index of the current training batch, counted over all epochs from 0."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1

    def sample_positions(self, size: int) -> list[int]:
        """Positions of this process's `size` samples in the batch of all processes, which take turns (EpochSampler)."""
        return [i * self.trainer.world_size + self.trainer.global_rank for i in range(size)]

    def training_seeds(self, size: int) -> list[tuple[int, ...]]:
        """A seed for each of this process's `size` samples of the current training batch."""
        batch = self.training_batch_index()
        return [(self.seed, TRAINING, batch, position) for position in self.sample_positions(size)]


class LossModel(TrainableModel):
    """A model whose training and validation need only the losses of a batch. Subclasses implement `losses`."""

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`loss`, which training minimises, and other values that validation logs, each a number."""
        raise NotImplementedError

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss, size = self.losses(batch)["loss"], len(next(iter(batch.values())))
        self.log("train/loss", loss.detach(), on_step=True, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, stage: str) -> None:
        losses = {f"{stage}/{name}": value for name, value in self.losses(batch).items()}
        self.log_dict(losses, on_epoch=True, sync_dist=True, batch_size=len(next(iter(batch.values()))))
