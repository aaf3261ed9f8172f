"""Training the autoencoder from scratch: for the small world, or for pictures of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.models.base import TrainableModel
from ldm.models.diffusion.draws import Draws
from ldm.util import instantiate_from_config


class ReconstructionLoss(NamedTuple):
    """loss, which training minimises; absolute: mean absolute difference; squared (B,): mean squared difference of each
    picture. Differences are of pixels in [-1,1]."""

    loss: Tensor
    absolute: Tensor
    squared: Tensor


class FirstStage(TrainableModel):
    """Reconstructs GT from a sample of its posterior. The loss is the mean absolute difference plus the posterior's KL
    divergence from the standard normal (Rombach et al. 2022, appendix G, without the adversarial and perceptual loss).

    first_stage_config: target and params of AutoencoderKL. Its weights are first_stage_model.*, as in LatentDiffusion.
    kl_weight: weight of the divergence if both losses are summed over a picture
    train_encoder: if false, only the decoder is trained, and latents stay what they are"""

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        kl_weight: float = 1e-6,
        monitor: str | None = "val/rec_loss",
        scheduler_config: Mapping[str, Any] | None = None,
        train_encoder: bool = True,
    ):
        super().__init__()
        self.kl_weight, self.monitor, self.scheduler_config = kl_weight, monitor, scheduler_config
        self.first_stage_model = instantiate_from_config(first_stage_config, nn.Module)
        for network in (self.first_stage_model.encoder, self.first_stage_model.quant_conv):
            network.requires_grad_(train_encoder)

    def batch_loss(self, batch: Mapping[str, Tensor], seeds: Sequence[Sequence[int]] | None) -> ReconstructionLoss:
        """seeds: one for the noise of each sample; without seeds the posterior's mean is decoded."""
        image = batch["GT"]
        posterior = self.first_stage_model.encode(image)
        if seeds is None:
            z = posterior.mode()
        else:
            z = posterior.sample(Draws.from_seeds(seeds, posterior.mean.shape[1:], 1, image.device).noise_gt)
        difference = self.first_stage_model.decode(z) - image
        absolute = difference.abs().mean()
        divergence = posterior.kl().mean() / image[0].numel()
        loss = absolute + self.kl_weight * divergence
        return ReconstructionLoss(loss, absolute, difference.square().mean(dim=(1, 2, 3)))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        seeds = self.training_seeds(len(batch["GT"]))
        loss, absolute, _ = self.batch_loss(batch, seeds)
        self.log(
            "train/rec_loss", absolute.detach(), on_step=True, prog_bar=True, sync_dist=True, batch_size=len(seeds)
        )
        return loss

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, stage: str) -> None:
        """Logs rec_loss, and psnr in dB, its mean over pictures. The posterior's mean is decoded."""
        _, absolute, squared = self.batch_loss(batch, None)
        psnr = (-10 * torch.log10(squared / 4)).mean()  # pixels have a range of 2
        losses = {f"{stage}/rec_loss": absolute, f"{stage}/psnr": psnr}
        self.log_dict(losses, on_epoch=True, sync_dist=True, batch_size=len(squared))
