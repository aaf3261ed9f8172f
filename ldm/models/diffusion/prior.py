"""Training a prior for Paint by Example to start from, in place of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.models.diffusion import conditioning
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.draws import Draws
from ldm.modules.distributions import DiagonalGaussianDistribution


class Prior(LatentDiffusion):
    """A LatentDiffusion whose UNet takes 4 channels: it learns what pictures look like, without references and masks.
    Its condition is always the learned vector. scripts/modify_checkpoints.py adds the other 5 channels."""

    @torch.no_grad()
    def encode_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """gt_moments alone; see LatentDiffusion."""
        if "gt_moments" in batch:
            return {"gt_moments": batch["gt_moments"].float()}
        return {"gt_moments": self.first_stage_model.moments(batch["GT"])}

    def batch_loss(
        self, batch: Mapping[str, Tensor], draws: Draws, u_cond_percent: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """p_losses of GT's latent with the learned vector for all samples; u_cond_percent is not used."""
        posterior = DiagonalGaussianDistribution(self.encode_batch(batch)["gt_moments"])
        z = self.get_first_stage_encoding(posterior, draws.noise_gt)
        return self.p_losses(z, conditioning.unconditional_token(self, len(z)), draws.t, draws.noise)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.cond_stage_model.requires_grad_(False)
            self.proj_out.requires_grad_(False)
