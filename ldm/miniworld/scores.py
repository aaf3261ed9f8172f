"""The small world's oracle and recogniser as metrics of an evaluation: whether an edit shows the reference's shape,
pattern and colours, or which individual it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.files import read_file
from ldm.evaluation.features import Extractor, load_strictly, make_extractor
from ldm.evaluation.metrics import Metric
from ldm.evaluation.scorers import Case
from ldm.miniworld.crops import SIDE, Labels, region_to_tensor
from ldm.miniworld.families import VIEW_SIDE
from ldm.miniworld.gallery import read_lookalikes, read_views
from ldm.miniworld.oracle import Oracle, colour_error, split_answers
from ldm.miniworld.recogniser import Recogniser

GROUPS = {"world": "The reference's identity, as the small world's oracle recognises it"}
METRICS = (
    Metric("shape", "Shape", "world", "higher", "oracle", "share of regions that show the reference's shape"),
    Metric("pattern", "Pattern", "world", "higher", "oracle", "share of regions that show the reference's pattern"),
    Metric("colour_error", "Colour error", "world", "lower", "oracle",
           "distance between the region's colours and the reference's, Delta E (CIE 1976)"),
)  # fmt: skip
TOP1 = Metric("top1", "Top-1 of 50", "world", "higher", "recogniser",
              "share of regions that are nearest to the reference among its look-alikes")  # fmt: skip


def load_oracle(file: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The oracle as an extractor: a region -> its answers (B,24), see split_answers.

    file: a run's last.ckpt, or what scripts/convert_checkpoint.py made of it. Raises UserError: missing, damaged, or
    weights of another network."""

    def join(answers: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([answer.flatten(1) for answer in answers], 1)

    return _load("oracle", Oracle(), file, device, SIDE, join)


def load_recogniser(file: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The recogniser as an extractor: a region -> its embedding (B,128), of length 1. file, errors: load_oracle's."""
    return _load("recogniser", Recogniser(), file, device, VIEW_SIDE)


def _load(
    kind: str,
    network: nn.Module,
    file: str | Path,
    device: torch.device | str,
    side: int,
    result: Callable[[Any], Tensor] | None = None,
) -> Extractor:
    """The extractor of a network that its training calls `kind`, and that sees regions of side x side pixels."""
    path = Path(file)
    tensors = {name.removeprefix(f"{kind}."): tensor.float() for name, tensor in read_file(path).items()}
    load_strictly(network, tensors, kind, path)

    def prepare(picture: Image.Image) -> np.ndarray:
        return region_to_tensor(np.asarray(picture), side).numpy()

    return make_extractor(kind, network, kind, path, device, None, prepare, result)


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


class LookalikeScorer:
    """Scores a region by its nearest individual among the look-alikes of the case's reference; a Scorer of
    ldm.evaluation. bench: a benchmark of individuals, whose gallery is read as it is needed. Raises UserError: another
    benchmark, or a damaged one."""

    keys = (TOP1.key,)

    def __init__(self, recogniser: Extractor, bench: Path):
        self.extractor, self.bench = recogniser, bench
        self.lookalikes = read_lookalikes(bench)
        self.gallery: dict[str, Tensor] = {}

    def prepare(self, case: Case) -> tuple[np.ndarray, str] | None:
        if case.region is None or case.id not in self.lookalikes:
            return None
        return self.extractor.prepare(case.region), case.id

    def score(self, inputs: Sequence[tuple[np.ndarray, str]]) -> dict[str, Sequence[float]]:
        regions, cases = zip(*inputs, strict=True)
        right = []
        for embedding, case in zip(self.extractor(regions), cases, strict=True):
            own, names = self.lookalikes[case]
            right.append(float(names[int((self._embeddings(names) @ embedding).argmax())] == own))
        return {TOP1.key: right}

    def _embeddings(self, names: Sequence[str]) -> Tensor:
        """(n,D): the mean embedding of each individual's views, of length 1."""
        for name in (each for each in names if each not in self.gallery):
            views = [self.extractor.prepare(Image.fromarray(view)) for view in read_views(self.bench, name)]
            self.gallery[name] = F.normalize(self.extractor(views).mean(dim=0), dim=0)
        return torch.stack([self.gallery[name] for name in names])

    def distances(self) -> dict[str, float]:
        return {}
