"""Stable Diffusion's safety checker, on what the model painted."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ldm.conventions import normalise_clip
from ldm.modules.pretrained import load_pretrained

HUB_REPO = "CompVis/stable-diffusion-safety-checker"
BLACK = -1.0


class SafetyChecker:
    """Pictures (B,3,H,W), about [-1,1] -> the same pictures, those that the checker finds unsafe replaced by black."""

    def __init__(self, network: Any):
        self.network = network.eval()
        self.size = network.config.vision_config.image_size

    @classmethod
    def load(cls, source: str | os.PathLike, device: torch.device | str = "cpu") -> SafetyChecker:
        """source: a folder as on the hub (config.json and the weights), or "hub", which downloads it once.

        Raises UserError: missing folder, a folder without a safety checker, no network."""
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        (network,) = load_pretrained("safety checker", source, HUB_REPO, StableDiffusionSafetyChecker)
        return cls(network.to(device))

    @torch.no_grad()
    def flagged(self, pictures: Tensor) -> list[bool]:
        """For each picture, whether the checker finds it unsafe."""
        from torchvision.transforms.functional import resize  # importing it takes a second

        pixels = resize((pictures.float().clamp(-1, 1) + 1) / 2, [self.size, self.size], antialias=True)
        device = next(self.network.parameters()).device
        clip_input = torch.stack([normalise_clip(each) for each in pixels.cpu()]).to(device)
        placeholder = torch.zeros(len(pictures), 1)  # the network blackens these in place; we do that ourselves
        return [bool(each) for each in self.network(clip_input=clip_input, images=placeholder)[1]]

    def __call__(self, pictures: Tensor) -> Tensor:
        unsafe = torch.tensor(self.flagged(pictures), device=pictures.device)
        return torch.where(unsafe[:, None, None, None], torch.full_like(pictures, BLACK), pictures)
