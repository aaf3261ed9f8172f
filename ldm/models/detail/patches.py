"""Patch tokens of an image encoder as what the blocks read (IP-Adapter, Ye et al. 2023, arXiv 2308.06721, section 3.2;
AnyDoor, Chen et al. 2023, arXiv 2307.09481: DINOv2's). The self-attention's queries are used: with one token those of
the cross-attention are not trained."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm.conventions import normalise_imagenet, reference_in_pixels
from ldm.models.detail.path import DetailModel, DetailPath, OwnMatrix
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.encoders.dinov2 import GRID, dinov2_side, load_dinov2
from ldm.storage import is_url
from ldm.util import UserError

CLIP = "clip"


class PatchPath(DetailPath):
    """Reads an encoder's patch tokens through a projector, with keys and values of its own.

    encoder: "clip", the model's own; "dinov2", from the hub; or a folder with a DINOv2; width: of its tokens"""

    kind: ClassVar[str] = "patches"

    def __init__(self, unet: UNetModel, rank: int, alpha: float, encoder: str, width: int):
        super().__init__(unet, rank, alpha)
        if not isinstance(encoder, str) or is_url(encoder):  # a stranger's file must not choose what is fetched
            raise UserError(f"detail: its encoder is {encoder!r}: use clip, dinov2, or a folder on this machine")
        self.encoder, self.width = encoder, width
        dim = unet.context_dim
        self.projector = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim)
        )

    @property
    def encoding(self) -> dict[str, Any]:
        return super().encoding | {"encoder": self.encoder, "width": self.width}

    def key_matrix(self, attn1: CrossAttention, unet: UNetModel) -> nn.Module:
        return OwnMatrix(unet.context_dim, attn1.to_k.out_features)

    @torch.no_grad()
    def encode(self, model: DetailModel, reference: Tensor) -> Tensor:
        """The patch tokens (R,M,width). Raises UserError: an encoder that cannot be loaded or has another width."""
        if self.encoder == CLIP:
            tokens = model.patch_features(reference)
        else:
            dino = load_dinov2("the detail path's encoder", self.encoder).to(reference.device)
            pixels = (reference_in_pixels(reference, dinov2_side(dino)) + 1.0) / 2.0
            tokens = dino(pixel_values=normalise_imagenet(pixels)).last_hidden_state[:, -(GRID**2) :]
        if tokens.shape[-1] != self.width:
            raise UserError(
                f"detail: its encoder {self.encoder} has tokens of width {tokens.shape[-1]}, not {self.width}: name "
                "the encoder that it was trained with"
            )
        return tokens

    def memories(self, model: DetailModel, encoded: Tensor, tokens: Tensor) -> list[Tensor]:
        return [self.projector(encoded)] * len(self.blocks)
