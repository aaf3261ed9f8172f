"""How a LatentDiffusion is trained by Lightning: steps, logging, which weights train, the average of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.base import TrainableModel
from ldm.models.diffusion.draws import VALIDATION, Draws
from ldm.modules.ema import LitEma

# Parameters that have no effect with a single context token: see CrossAttention.one_token.
UNUSED_WITH_ONE_TOKEN = re.compile(r"transformer_blocks\.\d+\.(attn2\.to_[qk]|norm2)\.")


class DiffusionTraining(TrainableModel):
    """The base class of LatentDiffusion, which adds the networks, the settings and `batch_loss`."""

    model: nn.Module
    first_stage_model: nn.Module
    cond_stage_model: nn.Module
    learnable_vector: nn.Parameter
    num_timesteps: int
    u_cond_percent: float
    cond_stage_trainable: bool
    ema_decay: float

    def encode_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        raise NotImplementedError

    def batch_loss(
        self, batch: Mapping[str, Tensor], draws: Draws, u_cond_percent: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ steps

    def make_draws(self, batch: Mapping[str, Tensor], seeds: Sequence[Sequence[int]]) -> Draws:
        """The random numbers of a step for this batch, encoded or not, from a seed for each sample."""
        if "gt_moments" in batch:
            _, channels, *sides = batch["gt_moments"].shape
            shape = (channels // 2, *sides)
        else:
            shape = self.latent_shape(batch["GT"])
        return Draws.from_seeds(seeds, shape, self.num_timesteps, next(iter(batch.values())).device)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        seeds = self.training_seeds(len(next(iter(batch.values()))))
        loss, values = self.batch_loss(batch, self.make_draws(batch, seeds), self.u_cond_percent)
        loss_simple = values.pop("train/loss_simple")
        self.log("train/loss_simple", loss_simple, on_step=True, prog_bar=True, sync_dist=True, batch_size=len(seeds))
        self.log_dict(values, on_step=True, sync_dist=True, batch_size=len(seeds))
        return loss

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, stage: str) -> None:
        """Logs loss_simple, and loss_simple_ema of the averaged weights; both are equal if no average is kept.

        Timesteps and noise are the same in every validation and no condition is dropped, so checkpoints can be
        compared."""
        batch = self.encode_batch(batch)
        positions = self.sample_positions(len(batch["gt_moments"]))
        first = batch_idx * getattr(self.trainer, f"{stage}_dataloaders").batch_size * self.trainer.world_size
        draws = self.make_draws(batch, [(0, VALIDATION, first + position) for position in positions])
        _, values = self.batch_loss(batch, draws, 0.0)
        averaged = values
        if hasattr(self, "model_ema"):
            with self.ema_scope():
                _, averaged = self.batch_loss(batch, draws, 0.0)
        losses = {
            f"{stage}/loss_simple": values["val/loss_simple"],
            f"{stage}/loss_simple_ema": averaged["val/loss_simple"],
        }
        self.log_dict(losses, on_epoch=True, sync_dist=True, batch_size=len(positions))

    # ------------------------------------------------------------------------------------------ weights

    def setup(self, stage: str) -> None:
        """Starts the average of the weights, and freezes parameters that get no gradient, so that they cost neither
        optimizer state nor communication."""
        if stage != "fit":
            return
        if self.use_ema and not hasattr(self, "model_ema"):
            self.model_ema = LitEma(self.model, self.ema_decay)
            # they are the same in every process, but DDP would broadcast them in every step (it has no public name)
            averages = [f"model_ema.{name}" for name, _ in self.model_ema.named_buffers()]
            self._ddp_params_and_buffers_to_ignore = averages
        if self.cond_stage_model.tokens == 1:
            for name, parameter in self.model.named_parameters():
                if UNUSED_WITH_ONE_TOKEN.search(name):
                    parameter.requires_grad_(False)
        if not self.cond_stage_trainable:
            self.cond_stage_model.requires_grad_(False)
        if self.u_cond_percent == 0:
            self.learnable_vector.requires_grad_(False)

    def train(self, mode: bool = True) -> DiffusionTraining:
        """The autoencoder and CLIP are frozen and stay in eval mode."""
        super().train(mode)
        self.first_stage_model.eval()
        self.cond_stage_model.transformer.eval()
        return self

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if hasattr(self, "model_ema"):
            self.model_ema(self.model)

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Inside, the UNet of a model that is trained with use_ema has the averaged weights; a loaded model has those
        that were chosen when its checkpoint was read. context: of the published call; not used."""
        if hasattr(self, "model_ema"):
            with self.model_ema.applied_to(self.model):
                yield
        else:
            yield

    # ------------------------------------------------------------------------------------------ speed

    def on_fit_start(self) -> None:
        if self.device.type == "cuda":
            self.to(memory_format=torch.channels_last)

    def compile_networks(self) -> None:
        for network in (self.model.diffusion_model, self.first_stage_model.encoder, self.cond_stage_model.transformer):
            network.compile(dynamic=False)
