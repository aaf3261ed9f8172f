"""CLIP by open_clip: a model built from a config file, and its residual image tower as a reference encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conventions import resize_tensor
from ldm.util import UserError, own_or_shipped


def build_clip(config: str | Path) -> nn.Module:
    """open_clip's CLIP with random weights. config: a JSON file in open_clip's format. Raises UserError."""
    import open_clip

    try:
        return open_clip.CLIP(**json.loads(own_or_shipped(config).read_text()))
    except Exception as error:  # JSON, open_clip and torch each raise their own for a wrong config
        raise UserError(
            f"CLIP config {config} cannot be built ({error!r:.200}): give one in open_clip's format"
        ) from error


class ResNetTower(nn.Module):
    """CLIP's residual network (Radford et al. 2021, section 2.4) as a reference encoder.

    (B,3,S,S) -> pooler_output (B,D), the picture's features, and last_hidden_state (B,1+N,D), the same followed by the
    features of N positions, which are their values in the pooling attention (Zhou et al. 2022, MaskCLIP).

    embed_dim, vision_cfg: of open_clip's config. S is 224, the size of references; the network resizes them to its own.
    """

    def __init__(self, embed_dim: int, vision_cfg: Mapping[str, Any]):
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.utils import freeze_batch_norm_2d

        self.side, width = vision_cfg["image_size"], vision_cfg["width"]
        heads = width * 32 // vision_cfg.get("head_width", 64)
        self.visual = freeze_batch_norm_2d(ModifiedResNet(vision_cfg["layers"], embed_dim, heads, self.side, width))
        self.config = SimpleNamespace(hidden_size=embed_dim, image_size=224)
        self.positions = 1 + (self.side // 32) ** 2

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        visual = self.visual
        x = visual.stem(resize_tensor(pixel_values, (self.side, self.side)))
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        pool = visual.attnpool
        pooled = pool(x)
        values = pool.c_proj(pool.v_proj(x.flatten(2).transpose(1, 2)))
        return SimpleNamespace(pooler_output=pooled, last_hidden_state=torch.cat([pooled[:, None], values], dim=1))
