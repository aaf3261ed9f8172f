"""Segment Anything 2 (Ravi et al. 2024) through transformers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldm.modules.pretrained import load_pretrained
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.segmentation.objects import Prompt

HUB_REPO = "facebook/sam2.1-hiera-tiny"


class SegmentAnything:
    """picture (H,W,3) uint8 RGB, prompt -> (H,W) bool, the object. Runs on the CPU."""

    def __init__(self, network: Any, processor: Any):
        self.network, self.processor = network.eval(), processor

    @classmethod
    def load(cls, source: str | os.PathLike) -> SegmentAnything:
        """source: a folder as on the hub (config.json, the weights, the processor), or "hub", which downloads it once.

        Raises UserError: a missing folder, one without a SAM 2, no network, a transformers without SAM 2."""
        try:
            from transformers import Sam2Model, Sam2Processor
        except ImportError as error:
            raise UserError("SAM 2 needs transformers 4.56 or newer: pip install -U transformers") from error
        parts = load_pretrained("segment", source, HUB_REPO, Sam2Model, Sam2Processor, others="grabcut, ")
        return cls(*parts)

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, prompt: Prompt) -> np.ndarray:
        points = [*prompt.clicks, *prompt.clicks_not]
        labels = [1] * len(prompt.clicks) + [0] * len(prompt.clicks_not)
        given: dict[str, Any] = {"input_boxes": [[list(prompt.box)]]} if prompt.box else {}
        if points:
            given |= {"input_points": [[[list(point) for point in points]]], "input_labels": [[labels]]}
        inputs = self.processor(images=picture.copy(), return_tensors="pt", **given)
        several = prompt.box is None and len(points) == 1  # one click may mean a part or the whole
        sizes = inputs.pop("original_sizes")
        out = self.network(**inputs, multimask_output=several)
        masks = self.processor.post_process_masks(out.pred_masks, sizes)[0]
        return masks[0, int(out.iou_scores[0, 0].argmax())].numpy().astype(bool)
