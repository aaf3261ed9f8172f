"""What stays fixed during an edit: the reference as one token, the photo and its mask as 5 latent channels.

M is the number of tokens, model.cond_stage_model.tokens: 1 with the bottleneck, all of CLIP's tokens without it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conventions import resize_tensor
from ldm.modules.distributions import DiagonalGaussianDistribution

RELATED = 0.5  # cosine of the v of two models above which one was fine-tuned from the other; of others it is about 0


class ConditioningModel(Protocol):
    """What conditioning needs of a model. LatentDiffusion has all of it."""

    @property
    def cond_stage_model(self) -> Any: ...  # `tokens` is M

    @property
    def proj_out(self) -> Any: ...  # (B,M,width) -> (B,M,context_dim)

    @property
    def learnable_vector(self) -> Tensor: ...  # (1,1,context_dim)

    def get_learned_conditioning(self, reference: Tensor) -> Tensor: ...

    def encode_first_stage(self, image: Tensor) -> DiagonalGaussianDistribution: ...

    def get_first_stage_encoding(
        self, posterior: DiagonalGaussianDistribution, noise: Tensor | None = None
    ) -> Tensor: ...


def reference_token(model: ConditioningModel, reference: Tensor) -> Tensor:
    """c = W LayerNorm(Mapper(class token of CLIP(x_r))) + b (Yang et al. 2022, section 3.2).

    reference: x_r (B,3,S,S), CLIP-normalised -> c (B,M,context_dim). proj_out is W and b."""
    return model.proj_out(model.get_learned_conditioning(reference))


def unconditional_token(model: ConditioningModel, batch: int) -> Tensor:
    """The learned vector v in place of c (Yang et al. 2022, section 3.4), repeated: (batch,M,context_dim)."""
    return model.learnable_vector.expand(batch, model.cond_stage_model.tokens, -1)


def is_related(v: Tensor, other: Tensor) -> bool:
    """Whether one of two models was fine-tuned from the other, by their learned vectors, of one width and any shape."""
    v, other = (each.detach().flatten().float().cpu() for each in (v, other))
    return len(v) == len(other) and bool(F.cosine_similarity(v, other, dim=0) >= RELATED)


def encode_to_latent(model: ConditioningModel, image: Tensor, noise: Tensor | None = None) -> Tensor:
    """image (B,3,H,W) in [-1,1] -> scaled posterior sample (B,4,h,w); noise: that shape, drawn if absent."""
    return model.get_first_stage_encoding(model.encode_first_stage(image), noise)


def inpaint_channels(
    model: ConditioningModel, inpaint_image: Tensor, mask: Tensor, noise: Tensor | None = None
) -> Tensor:
    """The UNet's inputs besides the noisy latent (Yang et al. 2022, section 3.1).

    inpaint_image: image * mask (B,3,H,W), the paper's (1 - m) * x_s; mask (B,1,H,W), 1 = keep; noise: see
    encode_to_latent -> (B,5,h,w), the latent ++ the resized mask."""
    z = encode_to_latent(model, inpaint_image, noise)
    height, width = z.shape[-2:]
    return torch.cat([z, resize_tensor(mask, (height, width))], dim=1)
