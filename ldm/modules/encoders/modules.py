"""The reference encoder: CLIP's image tower, its class token, the mapper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils import ModelOutput

from ldm.modules.encoders.clip import ResNetTower
from ldm.modules.encoders.xf import Transformer

# The published model's tower, so that building it needs no download; its weights are in the checkpoint.
CLIP_VERSION = "openai/clip-vit-large-patch14"
VISION_CONFIGS = {
    CLIP_VERSION: {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
}


class VisionTower(nn.Module):
    """CLIP's image tower under the published names `vision_model.*` with every version of transformers: version 5 drops
    the prefix, and newer versions no longer store the constant position_ids."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        tower = CLIPVisionModel(config)
        self.vision_model = getattr(tower, "vision_model", tower)
        self.config = config
        self.positions = self.vision_model.embeddings.num_positions
        embeddings = self.vision_model.embeddings
        # from numpy: the constant must have its values even if the model is built on the meta device
        positions = torch.from_numpy(np.arange(embeddings.num_positions)).view(1, -1)
        embeddings.register_buffer("position_ids", positions, persistent=True)

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        """(B,3,S,S) -> transformers' output with last_hidden_state (B,N,width) and pooler_output (B,width)."""
        return self.vision_model(pixel_values=pixel_values)


class FrozenCLIPImageEmbedder(nn.Module):
    """Reference (B,3,S,S) -> learned conditioning (B,1,width): class token -> mapper -> LayerNorm (the bottleneck of
    Yang et al. 2022, section 3.2), or without the bottleneck (B,M,width): class and patch tokens -> LayerNorm.

    Parameters:
        version: name of the CLIP model; its widths come from VISION_CONFIGS or from the hub. If vision_config or resnet
            gives the widths: the folder, or the file of open_clip, from which training loads CLIP's weights
        vision_config: a mapping for transformers' CLIPVisionConfig
        resnet: embed_dim and vision_cfg of open_clip's config, for a CLIP whose image tower is a residual network
        mapper_layers, mapper_heads: blocks of the mapper, attention heads in each
        bottleneck: false: all of CLIP's tokens, 257 at full size, without a mapper, as in the paper's ablation"""

    def __init__(
        self,
        version: str = CLIP_VERSION,
        vision_config: Mapping[str, Any] | None = None,
        mapper_layers: int = 5,
        mapper_heads: int = 1,
        bottleneck: bool = True,
        resnet: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if resnet:
            self.transformer = ResNetTower(**resnet)
        else:
            vision_config = vision_config or VISION_CONFIGS.get(version)
            config = CLIPVisionConfig(**vision_config) if vision_config else CLIPVisionConfig.from_pretrained(version)
            self.transformer = VisionTower(config)
        config = self.transformer.config
        self.width = config.hidden_size
        self.image_size = config.image_size  # S, pixels
        self.bottleneck = bottleneck
        if bottleneck:
            self.mapper = Transformer(self.width, mapper_layers, mapper_heads)
        self.final_ln = nn.LayerNorm(self.width)

    @property
    def tokens(self) -> int:
        """M, the number of tokens of the condition."""
        return 1 if self.bottleneck else self.transformer.positions

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """What the frozen CLIP makes of an image (B,3,S,S), CLIP-normalised: its class token after CLIP's last norm
        (B,1,width), or without the bottleneck all of its tokens (B,M,width)."""
        clip = self.transformer(pixel_values=image)
        return clip.pooler_output[:, None] if self.bottleneck else clip.last_hidden_state

    @torch.no_grad()
    def patches(self, image: Tensor) -> Tensor:
        """CLIP's patch tokens of an image (B,3,S,S), CLIP-normalised, before its last norm: (B,M,width)."""
        return self.transformer(pixel_values=image).last_hidden_state[:, 1:]

    def project(self, features: Tensor) -> Tensor:
        """CLIP's features -> learned conditioning (B,M,width): the mapper and the last norm, which are trained."""
        return self.final_ln(self.mapper(features) if self.bottleneck else features)

    def forward(self, image: Tensor) -> Tensor:
        """image (B,3,S,S), CLIP-normalised -> (B,M,width)."""
        return self.project(self.features(image))

    def encode(self, image: Tensor) -> Tensor:
        """forward under its published name."""
        return self(image)
