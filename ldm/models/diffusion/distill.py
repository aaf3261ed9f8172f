"""Guidance in one evaluation of the UNet instead of two (Meng et al. 2023, arXiv 2210.03142, section 3.1)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.conditioning import unconditional_token
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.denoiser import apply_guidance


class Distillation(LatentDiffusion):
    """A LatentDiffusion whose UNet, the student, starts as a copy of the teacher and learns to predict without guidance
    what the teacher predicts with it: E || eps_student(x, c, t) - guided eps_teacher(x, t) ||^2.

    guidance_scale: s of the teacher. The student has guidance built in and is sampled at scale 1. params: those of
    LatentDiffusion. Only the student's UNet is trained; c and v stay the teacher's. Checkpoints of a run hold teacher
    and student, so that the run can be resumed; read_checkpoint leaves the teacher out."""

    def __init__(self, guidance_scale: float = 5.0, **params: Any):
        super().__init__(**params)
        self.guidance_scale = guidance_scale

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            for frozen in (self.cond_stage_model, self.proj_out, self.learnable_vector):
                frozen.requires_grad_(False)
            self.teacher = copy.deepcopy(self.model).requires_grad_(False)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, cond: Tensor, noise: Tensor) -> Tensor:
        """The teacher's guided eps (B,4,h,w)."""
        both = self.teacher(x, t, torch.cat([unconditional_token(self, len(cond)), cond]))
        return apply_guidance(both, self.guidance_scale)
