"""Training a detail path from a finished model, all of whose weights stay frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.detail.kinds import build_detail
from ldm.models.diffusion.ddpm import Condition, LatentDiffusion
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.detail import recorded_outputs
from ldm.modules.diffusionmodules.openaimodel import layers_of

SHOWN, ENCODED = "ref_mask", "ref_detail"
MASK_SIDE = 64  # of a mask that is kept, finer than any grid of keys


class DetailTraining(LatentDiffusion):
    """A LatentDiffusion of which only a detail path is trained. detail: the arguments of build_detail; params: those of
    LatentDiffusion.

    A batch may say where the object is in its references: ref_mask (B,1,S,S), 1 = the object; without it, all of the
    reference is shown. A sample whose token is dropped sees no detail either."""

    def __init__(self, detail: Mapping[str, Any], **params: Any):
        super().__init__(**params)
        self.requires_grad_(False)
        self.detail = build_detail(self.model.diffusion_model, detail)
        self.detail.require_size(self.size_multiple)

    @torch.no_grad()
    def encode_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As LatentDiffusion, and

        | key        | value                                                                    |
        |------------|--------------------------------------------------------------------------|
        | ref_detail | (B,...), what DetailPath.encode makes of the reference                   |
        | ref_mask   | (B,1,s,s), 1 where the object is in it, reduced, if the batch has it     |

        A batch that was encoded before has them (ldm.training.latents.SameNetworks)."""
        encoded = super().encode_batch(batch)
        if ENCODED in encoded:
            return encoded
        encoded[ENCODED] = self.detail.encode(self, batch["ref_imgs"])
        if SHOWN in batch:
            encoded[SHOWN] = F.adaptive_avg_pool2d(batch[SHOWN], MASK_SIDE)
        return encoded

    def condition(self, encoded: Mapping[str, Tensor], dropped: Tensor) -> Condition:
        """Also the details, which are hidden from samples that are dropped."""
        c = self.proj_out(self.cond_stage_model.project(encoded["ref_features"]))
        memories = self.detail.memories(self, encoded[ENCODED], c)
        shown = encoded[SHOWN] if SHOWN in encoded else torch.ones_like(encoded["mask"])
        shown = torch.where(dropped[..., None], 0.0, shown)
        details = self.detail(self.model.diffusion_model, memories, encoded["mask"], shown)
        return {"c_crossattn": [super().condition(encoded, dropped)], "details": details}

    # ------------------------------------------------------------------------------------------ as DetailModel

    def patch_features(self, reference: Tensor) -> Tensor:
        """CLIP's patch tokens of references (R,3,S,S), CLIP-normalised -> (R,M,width)."""
        return self.cond_stage_model.patches(reference)

    def self_attention_inputs(self, x: Tensor, t: int, tokens: Tensor) -> list[Tensor]:
        """What every self-attention of the UNet sees, normalised, of x (R,9,h,w), tokens (R,M,D): (R,N,C) for each."""
        norms = [block.norm1 for block in layers_of(self.model.diffusion_model, BasicTransformerBlock)]
        with recorded_outputs(norms) as inputs:
            self.apply_model(x, torch.full(x.shape[:1], t, device=x.device), tokens)
        return inputs
