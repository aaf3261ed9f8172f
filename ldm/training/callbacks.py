"""Callbacks: throughput in the logs, grids of sample pictures, and stopping or skipping when the loss is not finite."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ldm.conventions import reference_to_image, tensor_to_image
from ldm.editing.inputs import Inputs
from ldm.editing.options import Sampling
from ldm.files import staging
from ldm.images import grid
from ldm.models.diffusion.conditioning import unconditional_token
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.denoiser import make_denoiser
from ldm.models.diffusion.prior import Prior
from ldm.models.diffusion.sampling import sample
from ldm.models.first_stage import FirstStage
from ldm.pipeline import PaintByExample
from ldm.training.checkpoints import LastCheckpoint
from ldm.util import UserError

TILE = 256  # px, of a picture in a grid
PRIOR_COLUMNS = 4  # pictures in a row, where a prior is trained

Columns = list[list[Image.Image]]  # the columns of a grid, each from top to bottom


class Throughput(Callback):
    """Logs the learning rate, and samples per second of all processes, measured since the previous batch."""

    def __init__(self) -> None:
        self.previous: float | None = None  # time at the end of the previous batch, in seconds

    def on_train_batch_start(self, *_: Any) -> None:
        if self.previous is None:
            self.previous = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, _: Any, batch: Any, *__: Any) -> None:
        now = time.perf_counter()
        rate = len(next(iter(batch.values()))) * trainer.world_size / (now - self.previous)
        self.previous = now
        pl_module.log("samples/s", rate, prog_bar=True, on_step=True, batch_size=1)
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"], prog_bar=True, on_step=True, batch_size=1)


class FiniteLoss(Callback):
    """Stops the run when the loss is not finite, before the weights change; with `skip`, only that step is skipped."""

    def __init__(self, skip: bool, last: LastCheckpoint | None):
        self.skip, self.last = skip, last
        self.skip_step = False

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        finite = bool(torch.isfinite(loss))
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            return
        if not self.skip:
            files = ", ".join(map(str, trainer.datamodule.train_paths())) or "unknown, they are in shards"
            saved = self.last is not None and self.last.path.exists()
            checkpoint = f"the last checkpoint is {self.last.path}" if saved else "there is no checkpoint yet"
            raise UserError(
                f"the loss of step {trainer.global_step} is not finite ({checkpoint}; the batch's files are {files}): "
                "lower the learning rate, or continue with --nonfinite skip"
            )
        self.skip_step = True

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.skip_step:
            self.skip_step = False
            optimizer.zero_grad(set_to_none=True)
            rank_zero_warn(f"the loss of step {trainer.global_step} is not finite: the step is skipped")


class SampleGrid(Callback):
    """Draws a grid of validation samples after the first step and then every `every_n_steps`, with the averaged weights
    if the model keeps them, to the run's images/ and to its loggers.

    A row shows, for LatentDiffusion: input, masked input, reference, and an edit at each guidance scale; for the
    autoencoder: input and reconstruction; for the prior: pictures that it generates.

    count: rows; steps: of the sampler; scales: of the guidance."""

    def __init__(
        self, folder: Path, every_n_steps: int, count: int = 4, steps: int = 50, scales: Sequence[float] = (1.0, 5.0)
    ):
        self.folder, self.every_n_steps = folder, every_n_steps
        self.count, self.steps, self.scales = count, steps, scales
        self.drawn_step = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step == self.drawn_step or (step > 1 and step % self.every_n_steps):
            return
        self.drawn_step = step
        if trainer.is_global_zero:
            try:
                self.draw(trainer, pl_module, step)
            except UserError as error:  # the run goes on without them
                rank_zero_warn(f"step {step} has no pictures: {error}")
        trainer.strategy.barrier("pictures")

    def draw(self, trainer: lightning.Trainer, model: Any, step: int) -> None:
        """Writes the grid of a step to a file and to the loggers. Raises UserError: an unusable validation split."""
        kinds = {FirstStage: self.reconstructions, Prior: self.generated, LatentDiffusion: self.edits}
        columns = next((columns for kind, columns in kinds.items() if isinstance(model, kind)), None)
        if columns is None:  # a model that makes no pictures, such as CLIP
            return
        batch = trainer.datamodule.first_samples(self.count)
        tiles = [picture.resize((TILE, TILE)) for row in zip(*columns(model, batch), strict=True) for picture in row]
        sheet = grid(tiles, rows=len(batch["GT"]))
        with staging(self.folder) as temporary:
            sheet.save(temporary / f"step{step:08}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(sheet), step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image("samples", [sheet], step=step)

    def edits(self, model: LatentDiffusion, batch: dict[str, Tensor]) -> Columns:
        """Input, masked input and reference, and an edit at each scale."""
        inputs = Inputs(batch["GT"], batch["inpaint_mask"], batch["ref_imgs"], shown=batch.get("ref_mask"))
        seeds = range(len(batch["GT"]))
        columns = [
            [tensor_to_image(image) for image in batch["GT"]],
            [tensor_to_image(image) for image in batch["inpaint_image"]],
            [reference_to_image(image) for image in batch["ref_imgs"]],
        ]
        with model.ema_scope():
            pipeline = PaintByExample(model, "full", fast=False)
            pipeline.detail = getattr(model, "detail", None)
            for scale in self.scales:
                edits = pipeline.sample(inputs, seeds, Sampling(scale=scale, steps=self.steps), progress=False)
                columns.append([tensor_to_image(image) for image in edits])
        return columns

    @torch.no_grad()
    def generated(self, model: Prior, batch: dict[str, Tensor]) -> Columns:
        """PRIOR_COLUMNS pictures per row, of the batch's size, each from its own seed."""
        shape = (model.channels, *(side // model.first_stage_model.factor for side in batch["GT"].shape[-2:]))
        context = unconditional_token(model, len(batch["GT"]))
        columns = []
        with model.ema_scope():
            for column in range(PRIOR_COLUMNS):
                seeds = [column * len(context) + row for row in range(len(context))]
                generators = [torch.Generator().manual_seed(seed) for seed in seeds]
                x_T = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(model.device)
                no_channels = x_T[:, :0]  # the prior sees the noisy latent alone
                eps = make_denoiser(model.apply_model)(no_channels, context)
                z = sample("plms", eps, x_T, model.schedule, self.steps)
                columns.append([tensor_to_image(image) for image in model.decode_first_stage(z)])
        return columns

    @torch.no_grad()
    def reconstructions(self, model: FirstStage, batch: dict[str, Tensor]) -> Columns:
        """Input and reconstruction."""
        images = batch["GT"]
        reconstructed = model.first_stage_model.reconstruct(images.to(model.device))
        return [[tensor_to_image(image) for image in column] for column in (images, reconstructed)]
