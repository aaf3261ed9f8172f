"""The autoencoder in training, where there is none to start from: for the small world, or pictures of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.base import TrainableModel
from ldm.models.diffusion.draws import Draws
from ldm.util import instantiate_from_config


class FirstStage(TrainableModel):
    """Reconstructs GT from a sample of its posterior: absolute difference, and a little of the posterior's divergence
    from the standard normal (Rombach et al. 2022, appendix G, without the adversary and the perceptual loss).

    first_stage_config: target and params of AutoencoderKL, whose weights are kept as first_stage_model.*, the names
    that LatentDiffusion knows. kl_weight: of the divergence, both summed over a picture."""

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        kl_weight: float = 1e-6,
        monitor: str | None = "val/rec_loss",
        scheduler_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.kl_weight, self.monitor, self.scheduler_config = kl_weight, monitor, scheduler_config
        self.first_stage_model = instantiate_from_config(first_stage_config, nn.Module)

    def batch_loss(
        self, batch: Mapping[str, Tensor], seeds: Sequence[Sequence[int]] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> loss; mean absolute difference; mean squared difference of each picture (B,), pixels in [-1,1]. seeds: of
        each sample's noise; None takes the posterior's mean."""
        image = batch["GT"]
        posterior = self.first_stage_model.encode(image)
        if seeds is None:
            z = posterior.mode()
        else:
            z = posterior.sample(Draws.from_seeds(seeds, posterior.mean.shape[1:], 1, image.device).noise_gt)
        difference = self.first_stage_model.decode(z) - image
        absolute = difference.abs().mean()
        divergence = posterior.kl().mean() / image[0].numel()
        return absolute + self.kl_weight * divergence, absolute, difference.square().mean(dim=(1, 2, 3))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        seeds = self.training_seeds(len(batch["GT"]))
        loss, absolute, _ = self.batch_loss(batch, seeds)
        self.log(
            "train/rec_loss", absolute.detach(), on_step=True, prog_bar=True, sync_dist=True, batch_size=len(seeds)
        )
        return loss

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, name: str) -> None:
        """Logs rec_loss, and psnr in dB, the mean over pictures, of what goes through the posterior's mean."""
        _, absolute, squared = self.batch_loss(batch, None)
        psnr = (-10 * torch.log10(squared / 4)).mean()  # the range of pixels is 2
        self.log_dict(
            {f"{name}/rec_loss": absolute, f"{name}/psnr": psnr}, on_epoch=True, sync_dist=True, batch_size=len(squared)
        )
