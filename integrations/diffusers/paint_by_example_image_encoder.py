"""Paint by Example's image encoder (Yang et al. 2022, section 3.2): a reference picture becomes one token.

c = linear(LayerNorm(mapper(class token of CLIP(reference)))); the learned vector v stands for "no reference". The
weights have the names of diffusers' class of the same name."""

from pathlib import Path

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn
from transformers import CLIPPreTrainedModel, CLIPVisionConfig, CLIPVisionModel


class Mapper(nn.Module):
    """(B,1,width) -> (B,1,width): one transformer block for five layers of CLIP."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        options = {"activation_fn": "gelu", "attention_bias": True}
        self.blocks = nn.ModuleList(BasicTransformerBlock(width, 1, width, **options) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class PaintByExampleImageEncoder(CLIPPreTrainedModel):
    config_class = CLIPVisionConfig

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        width, context = config.hidden_size, config.projection_dim
        self.model = CLIPVisionModel(config)
        self.mapper = Mapper(width, (config.num_hidden_layers + 1) // 5)
        self.final_layer_norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, context)
        self.uncond_vector = nn.Parameter(torch.randn(1, 1, context))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, return_uncond_vector: bool = False):
        """(B,3,S,S), normalised for CLIP -> c (B,1,context), and v (1,1,context) if it is asked for."""
        class_token = self.model(pixel_values=pixel_values).pooler_output[:, None]
        c = self.proj_out(self.final_layer_norm(self.mapper(class_token)))
        return (c, self.uncond_vector) if return_uncond_vector else c

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers', and this file beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        (Path(save_directory) / Path(__file__).name).write_bytes(Path(__file__).read_bytes())
