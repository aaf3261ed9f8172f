"""Two objects painted at once or one after the other: scenes with two regions, judged by the oracle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor

from ldm.conventions import image_to_tensor, mask_to_tensor
from ldm.data.bench.squares import cut
from ldm.data.masks import Box, reference_region
from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import WHOLE_PHOTO, Placement, Sampling
from ldm.editing.regions import Region
from ldm.evaluation.benchmark import mean_interval
from ldm.evaluation.features import Extractor
from ldm.miniworld.crops import Labels, labels_of
from ldm.miniworld.identity import draw_held_out
from ldm.miniworld.scene import scene
from ldm.miniworld.scores import identity_scores
from ldm.miniworld.worlds import REFERENCE_STREAM, SOURCE_STREAM
from ldm.miniworld.write import attributes_of
from ldm.pictures.seam import seam
from ldm.pipeline import PaintByExample

SIZE = (128, 128)  # width and height of a scene, pixels
SAMPLING = Sampling(sampler="dpm++", steps=12)
COLUMNS = ("shape", "pattern", "colour error", "other's colours", "seam", "seconds")
WAYS = {
    "one after the other": Placement(),
    "one after the other, each sees the whole photo": Placement(context=WHOLE_PHOTO),
    "together": Placement(together=True),
    "together, the mean of both tokens": Placement(together=True),
}
MEAN = "together, the mean of both tokens"


@dataclass(frozen=True)
class Case:
    """A photo with two regions, and for each a reference and its labels."""

    photo: Image.Image
    boxes: tuple[Box, ...]
    references: tuple[Image.Image, ...]
    labels: tuple[Labels, ...]

    def outlined(self) -> Image.Image:
        """The photo with a frame around each region."""
        picture = self.photo.copy()
        for box in self.boxes:
            ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="white")
        return picture

    def marked(self, mean: bool) -> MarkedPhoto:
        """mean: both references for both regions."""
        references = [self.references] if mean else [*self.references]
        return MarkedPhoto.mark(self.photo, [Region(box=box) for box in self.boxes], references)


def draw_case(number: int) -> Case:
    """Two objects that do not overlap, and held-out references."""
    for attempt in count():
        seed = (2, number, attempt)
        pixels, things = scene((*seed, SOURCE_STREAM), SIZE, (2, 3))
        others, objects = scene((*seed, REFERENCE_STREAM), SIZE, (2, 3), draw=draw_held_out)
        pairs = [(a, b) for i, a in enumerate(things) for b in things[:i] if not _overlap(a.box, b.box)]
        if pairs and len(objects) > 1:
            break
    references = tuple(cut(others, reference_region(each.box, SIZE)) for each in objects[:2])
    labels = tuple(labels_of(attributes_of(each)) for each in objects[:2])
    return Case(Image.fromarray(pixels), tuple(each.box for each in pairs[0]), references, labels)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True)
class Way:
    """A way to paint both regions: its pictures, and its scores by column, (mean, low, high) over the cases."""

    name: str
    pictures: Sequence[Image.Image]
    scores: Mapping[str, tuple[float, float, float]]


def measure(edit: PaintByExample, oracle: Extractor, cases: Sequence[Case], seed: int = 321) -> Iterator[Way]:
    """Paints the cases in each of WAYS. other's colours: share of regions whose colours are nearer to the other
    reference's than to their own; seconds: of an edit, both regions, at a batch of one."""
    for name, placement in WAYS.items():
        pictures, seconds = [], []
        for i, case in enumerate(cases):
            begin = time.perf_counter()
            pictures += edit.repaint([case.marked(name == MEAN)], [seed + i], SAMPLING, placement, progress=False)
            seconds.append(time.perf_counter() - begin)
        by_case = _scores(oracle, cases, pictures) | {"seconds": np.array(seconds)}
        summary = {}
        for column in COLUMNS:
            values = by_case[column]
            summary[column] = (float(values.mean()), *mean_interval(values))
        yield Way(name, pictures, summary)


def _scores(oracle: Extractor, cases: Sequence[Case], pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
    """Of each case the mean over its regions, by column."""
    pairs = zip(cases, pictures, strict=True)
    regions = [oracle.prepare(picture.crop(box)) for case, picture in pairs for box in case.boxes]
    answers = oracle(regions)
    own = identity_scores(answers, [label for case in cases for label in case.labels])
    other = identity_scores(answers, [label for case in cases for label in case.labels[::-1]])
    leaks = (other["colour_error"] < own["colour_error"]).float()
    by_region: dict[str, Tensor] = {"shape": own["shape"], "pattern": own["pattern"], "other's colours": leaks}
    by_region["colour error"] = own["colour_error"]
    scores = {name: values.view(len(cases), -1).mean(dim=1).double().numpy() for name, values in by_region.items()}
    return scores | {"seam": np.array([_seam(case, each) for case, each in zip(cases, pictures, strict=True)])}


def _seam(case: Case, picture: Image.Image) -> float:
    masks = case.marked(mean=True).masks
    keep = mask_to_tensor(ImageChops.lighter(*masks))
    value = seam((image_to_tensor(picture) + 1) / 2, keep)
    assert value is not None  # boxes have edges
    return value
