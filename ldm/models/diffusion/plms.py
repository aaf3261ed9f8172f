"""The published PLMS call: as DDIMSampler, with sampling.sample_plms behind it."""

from __future__ import annotations

from ldm.models.diffusion.ddim import DDIMSampler


class PLMSSampler(DDIMSampler):
    """`PLMSSampler(model).sample(...)`; eta must be 0."""

    name = "plms"
