"""Segment Anything 2 (Ravi et al. 2024) through transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldm.util import UserError, listing

if TYPE_CHECKING:
    from ldm.segmentation.objects import Prompt

HUB_REPO = "facebook/sam2.1-hiera-tiny"


class SegmentAnything:
    """picture (H,W,3) uint8 RGB, prompt -> (H,W) bool, the object. Runs on the CPU."""

    def __init__(self, network: Any, processor: Any):
        self.network, self.processor = network.eval(), processor

    @classmethod
    def load(cls, source: str | os.PathLike | None) -> SegmentAnything:
        """source: a folder as on the hub (config.json, the weights, the processor), or "hub", which downloads it once.

        Raises UserError: a missing folder, one without a SAM 2, no network, a transformers without SAM 2."""
        try:
            from transformers import Sam2Model, Sam2Processor
        except ImportError as error:
            raise UserError("SAM 2 needs transformers 4.56 or newer: pip install -U transformers") from error
        folder = HUB_REPO if source == "hub" else os.fspath(source or "")
        if source != "hub" and not (Path(folder) / "config.json").is_file():
            raise UserError(f"segment {source} has no config.json: use grabcut, hub, or the folder of {HUB_REPO}")
        try:
            local = {"local_files_only": source != "hub"}
            network, report = Sam2Model.from_pretrained(folder, output_loading_info=True, **local)
            processor = Sam2Processor.from_pretrained(folder, **local)
        except Exception as error:  # transformers and the hub raise many kinds
            reason = str(error).split("\n")[0]
            cure = "connect to the network once, or give a folder" if source == "hub" else f"download {HUB_REPO} again"
            raise UserError(f"segment {source} cannot be loaded ({reason:.200}): {cure}") from error
        if missing := report["missing_keys"] or report["mismatched_keys"]:  # they would stay random
            raise UserError(f"segment {source} lacks {listing(map(str, missing))}: download {HUB_REPO} again")
        return cls(network, processor)

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
