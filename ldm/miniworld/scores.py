"""The small world's oracle as metrics of an evaluation: whether an edit shows the reference's shape, pattern and
colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.files import read_file
from ldm.evaluation.features import Extractor, load_strictly, make_extractor
from ldm.evaluation.metrics import Metric
from ldm.evaluation.scorers import Case
from ldm.miniworld.crops import Labels, region_to_tensor
from ldm.miniworld.oracle import Oracle, colour_error, split_answers

GROUPS = {"world": "The reference's identity, as the small world's oracle recognises it"}
METRICS = (
    Metric("shape", "Shape", "world", "higher", "oracle", "share of regions that show the reference's shape"),
    Metric("pattern", "Pattern", "world", "higher", "oracle", "share of regions that show the reference's pattern"),
    Metric("colour_error", "Colour error", "world", "lower", "oracle",
           "distance between the region's colours and the reference's, Delta E (CIE 1976)"),
)  # fmt: skip


def load_oracle(file: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The oracle as an extractor: a region -> its answers (B,24), see split_answers.

    file: a run's last.ckpt, or what scripts/convert_checkpoint.py made of it. Raises UserError: missing, damaged, or
    weights of another network."""
    path = Path(file)
    network = Oracle()
    tensors = {name.removeprefix("oracle."): tensor.float() for name, tensor in read_file(path).items()}
    load_strictly(network, tensors, "oracle", path)

    def prepare(picture: Image.Image) -> np.ndarray:
        return region_to_tensor(np.asarray(picture)).numpy()

    def join(answers: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([answer.flatten(1) for answer in answers], 1)

    return make_extractor("oracle", network, "oracle", path, device, None, prepare, join)


def identity_scores(answers: Tensor, labels: Sequence[Labels]) -> dict[str, Tensor]:
    """The oracle's answers (B,24) for regions, and the labels of their references -> (B,) by metric."""
    shape, pattern, colours = split_answers(answers)
    shapes = torch.tensor([each.shape for each in labels])
    patterns = torch.tensor([each.pattern for each in labels])
    return {
        "shape": (shape.argmax(dim=1) == shapes).float(),
        "pattern": (pattern.argmax(dim=1) == patterns).float(),
        "colour_error": colour_error(colours, torch.from_numpy(np.array([each.colours for each in labels]))),
    }


class IdentityScorer:
    """Scores a region by the oracle's answers; a Scorer of ldm.evaluation. labels: case -> labels of its reference."""

    keys = tuple(metric.key for metric in METRICS)

    def __init__(self, oracle: Extractor, labels: Mapping[str, Labels]):
        self.extractor, self.labels = oracle, labels

    def prepare(self, case: Case) -> tuple[np.ndarray, Labels] | None:
        if case.region is None or case.id not in self.labels:
            return None
        return self.extractor.prepare(case.region), self.labels[case.id]

    def score(self, inputs: Sequence[tuple[np.ndarray, Labels]]) -> dict[str, Sequence[float]]:
        regions, labels = zip(*inputs, strict=True)
        return {key: values.tolist() for key, values in identity_scores(self.extractor(regions), labels).items()}

    def distances(self) -> dict[str, float]:
        return {}
