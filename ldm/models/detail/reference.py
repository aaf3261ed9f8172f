"""The reference through the same UNet: the blocks read the normed inputs of its self-attention (CatVTON, Chong et al.
2024, arXiv 2407.15886: one UNet, only self-attention is trained; FastFit, arXiv 2508.20586: once, at one timestep)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm.conventions import reference_in_pixels
from ldm.models.detail.path import Correction, DetailModel, DetailPath
from ldm.models.diffusion.conditioning import encode_to_latent
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.util import UserError

TIMESTEP = 0  # its noise is invisible, so the clean latent is what the UNet expects there


class ReferencePath(DetailPath):
    """Reads the UNet's own features of the reference, all of whose weights are corrected by low rank.

    size: side at which the UNet sees a reference, pixels. Raises UserError: not a whole number."""

    kind: ClassVar[str] = "reference"

    def __init__(self, unet: UNetModel, rank: int, alpha: float, size: int):
        super().__init__(unet, rank, alpha)
        if not (isinstance(size, int) and size >= 1):
            raise UserError(f"detail: its size is {size!r}: use pixels, for instance 256")
        self.size = size

    @property
    def encoding(self) -> dict[str, Any]:
        return super().encoding | {"size": self.size}

    def require_size(self, multiple: int) -> None:
        if self.size % multiple:
            near = max(multiple, round(self.size / multiple) * multiple)
            raise UserError(f"detail: its size {self.size} is no multiple of the model's {multiple} pixels: use {near}")

    def key_matrix(self, attn1: CrossAttention, unet: UNetModel) -> nn.Module:
        return Correction(attn1.to_k.in_features, self.rank, self.alpha)

    def encode(self, model: DetailModel, reference: Tensor) -> Tensor:
        """The mean of the autoencoder's posterior (R,4,h,w), scaled."""
        pixels = reference_in_pixels(reference, self.size)
        noise = torch.zeros((), device=pixels.device)
        return encode_to_latent(model, pixels, noise)

    @torch.no_grad()
    def memories(self, model: DetailModel, encoded: Tensor, tokens: Tensor) -> list[Tensor]:
        """The latent as the noisy one and as that of the masked image, the mask 1 (keep) everywhere."""
        x = torch.cat([encoded, encoded, torch.ones_like(encoded[:, :1])], dim=1)
        return model.self_attention_inputs(x, TIMESTEP, tokens)
