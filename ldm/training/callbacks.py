"""What is seen of a run, and what stops it."""

from __future__ import annotations

import time
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
from ldm.training.checkpoints import Last
from ldm.util import UserError

TILE = 256  # px, of a picture in a grid


class Throughput(Callback):
    """Logs samples per second, of all processes, since the batch before, and the learning rate."""

    def on_train_batch_start(self, *_: Any) -> None:
        if not hasattr(self, "before"):
            self.before = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, _: Any, batch: Any, *__: Any) -> None:
        now = time.perf_counter()
        rate = len(next(iter(batch.values()))) * trainer.world_size / (now - self.before)
        self.before = now
        pl_module.log("samples/s", rate, prog_bar=True, on_step=True, batch_size=1)
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"], prog_bar=True, on_step=True, batch_size=1)


class FiniteLoss(Callback):
    """A loss that is not finite stops the run before the weights are touched; with `skip` it costs that step alone."""

    def __init__(self, skip: bool, last: Last):
        self.skip, self.last = skip, last
        self.bad = False

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        finite = bool(torch.isfinite(loss))
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            return
        if not self.skip:
            files = ", ".join(map(str, trainer.datamodule.train_paths())) or "not known, they are in shards"
            path = self.last.path
            last = f"the last checkpoint is {path}" if path.exists() else "there is no checkpoint"
            raise UserError(
                f"step {trainer.global_step}: the loss is not finite; {last}; the batch's files: {files}; lower the "
                "learning rate, or go on with --nonfinite skip"
            )
        self.bad = True

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.bad:
            self.bad = False
            optimizer.zero_grad(set_to_none=True)
            rank_zero_warn(f"step {trainer.global_step}: the loss is not finite; step skipped")


class Pictures(Callback):
    """After the first step and then every so many, a grid of validation samples, with the averaged weights if there are
    any: input, masked input, reference, and an edit at each guidance scale; or, where it is the autoencoder that is
    trained, input and reconstruction; or what the prior makes up. To images/ of the run and to its loggers.

    count: rows; steps: of the sampler."""

    def __init__(
        self, folder: Path, every_n_steps: int, count: int = 4, steps: int = 50, scales: tuple[float, ...] = (1.0, 5.0)
    ):
        self.folder, self.every_n_steps = folder, every_n_steps
        self.count, self.steps, self.scales = count, steps, scales
        self.drawn = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step == self.drawn or (step > 1 and step % self.every_n_steps):
            return
        self.drawn = step
        if trainer.is_global_zero:
            try:
                self.draw(trainer, pl_module, step)
            except UserError as error:  # a run does not end for want of a picture
                rank_zero_warn(f"no pictures of step {step}: {error}")
        trainer.strategy.barrier("pictures")

    def draw(self, trainer: lightning.Trainer, model: Any, step: int) -> None:
        kinds = {FirstStage: self.reconstructions, Prior: self.inventions, LatentDiffusion: self.edits}
        columns = next((columns for kind, columns in kinds.items() if isinstance(model, kind)), None)
        if columns is None:  # nothing to look at
            return
        batch = trainer.datamodule.some(self.count)
        rows = [picture.resize((TILE, TILE)) for row in zip(*columns(model, batch), strict=True) for picture in row]
        sheet = grid(rows, rows=len(batch["GT"]))
        with staging(self.folder) as temporary:
            sheet.save(temporary / f"step{step:08}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(sheet), step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image("samples", [sheet], step=step)

    def edits(self, model: LatentDiffusion, batch: dict[str, Tensor]) -> list[list[Image.Image]]:
        inputs = Inputs(batch["GT"], batch["inpaint_mask"], batch["ref_imgs"])
        seeds = range(len(batch["GT"]))
        columns = [
            [tensor_to_image(image) for image in batch["GT"]],
            [tensor_to_image(image) for image in batch["inpaint_image"]],
            [reference_to_image(image) for image in batch["ref_imgs"]],
        ]
        with model.ema_scope():
            pipeline = PaintByExample(model, "full", fast=False)
            for scale in self.scales:
                edits = pipeline.sample(inputs, seeds, Sampling(scale=scale, steps=self.steps), progress=False)
                columns.append([tensor_to_image(image) for image in edits])
        return columns

    @torch.no_grad()
    def inventions(self, model: Prior, batch: dict[str, Tensor]) -> list[list[Image.Image]]:
        shape = (model.channels, *(side // model.first_stage_model.factor for side in batch["GT"].shape[-2:]))
        context = unconditional_token(model, len(batch["GT"]))
        columns = []
        with model.ema_scope():
            for column in range(4):
                seeds = [torch.Generator().manual_seed(column * len(context) + row) for row in range(len(context))]
                x_T = torch.stack([torch.randn(shape, generator=seed) for seed in seeds]).to(model.device)
                no_channels = x_T[:, :0]  # a prior sees the noisy latent alone
                eps = make_denoiser(model.apply_model)(no_channels, context)
                z = sample("plms", eps, x_T, model.schedule, self.steps)
                columns.append([tensor_to_image(image) for image in model.decode_first_stage(z)])
        return columns

    @torch.no_grad()
    def reconstructions(self, model: FirstStage, batch: dict[str, Tensor]) -> list[list[Image.Image]]:
        images = batch["GT"]
        return [
            [tensor_to_image(image) for image in each]
            for each in (images, model.first_stage_model.reconstruct(images.to(model.device)))
        ]
