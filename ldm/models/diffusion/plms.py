"""The published PLMS call: DDIMSampler's, with another sampler behind it."""

from __future__ import annotations

from ldm.models.diffusion.ddim import DDIMSampler


class PLMSSampler(DDIMSampler):
    """`PLMSSampler(model).sample(...)`; eta must be 0."""

    name = "plms"
