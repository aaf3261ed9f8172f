"""The asymmetric VQGAN's decoder (Zhu et al. 2023), which sees the photo around the mask while it decodes."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.fast.offload import on_device
from ldm.models.autoencoder import OVERLAP, TILE, apply_in_tiles
from ldm.modules.pretrained import load_diffusers
from ldm.util import UserError

EXAMPLE = "an asymmetric autoencoder, such as cross-attention/asymmetric-autoencoder-kl-x-1-5 from the hub"


class AsymmetricDecoder:
    """Latents of Stable Diffusion v1's autoencoder, and the photo with its mask -> pictures."""

    def __init__(self, autoencoder: Any):
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.factor = 2 ** (len(autoencoder.config.up_block_out_channels) - 1)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, device: torch.device | str = "cpu", factor: int = 8, channels: int = 4
    ) -> AsymmetricDecoder:
        """folder: as published (cross-attention/asymmetric-autoencoder-kl-x-1-5 or -x-2), as safetensors, so that no
        code of it runs. device: where it stays between edits. factor, channels: of the latents that it decodes.

        Raises UserError: missing folder, not an asymmetric autoencoder, one for other latents."""
        from diffusers import AsymmetricAutoencoderKL

        autoencoder = load_diffusers("decoder", folder, EXAMPLE, AsymmetricAutoencoderKL)
        decoder = cls(autoencoder)
        own = decoder.factor, autoencoder.config.latent_channels
        if own != (factor, channels):
            raise UserError(
                f"decoder {folder} is for latents of {own[1]} channels and factor {own[0]}, but the model's have "
                f"{channels} and {factor}: leave it out"
            )
        autoencoder.to(device)
        return decoder

    def __call__(self, z: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """z (B,4,h,w), not scaled; image (B,3,H,W) in [-1,1]; mask (B,1,H,W), 1 = keep -> (B,3,H,W), about [-1,1].

        Large pictures are decoded in tiles, on z's device, wherever the decoder stays."""
        # at z's resolution, so that a tile cuts both
        photo = F.pixel_unshuffle(torch.cat([image, mask], dim=1), self.factor)

        def decode(tile: Tensor) -> Tensor:
            latent, around = tile.split([z.shape[1], photo.shape[1]], dim=1)
            image, mask = F.pixel_shuffle(around, self.factor).split([3, 1], dim=1)
            return self.autoencoder.decode(latent, image=image, mask=1 - mask).sample  # its mask has 1 = paint

        with on_device(z.device, self.autoencoder):
            return apply_in_tiles(decode, torch.cat([z, photo], dim=1), TILE, OVERLAP, self.factor)
