"""What the small world's scenes show: the twelve shapes, or individuals.

No individual is in two splits, and those of the benchmark are in no split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ldm.data.index import SPLITS
from ldm.miniworld.crops import ATTRIBUTES
from ldm.miniworld.identity import draw_identity
from ldm.miniworld.individuals import KINDS, Population
from ldm.miniworld.scene import Look
from ldm.miniworld.shapes import SHAPES

Draw = Callable[[np.random.Generator], Look]

PRETRAINING = "pretraining"
# a scene's seed is (the world's seed, one of these, the scene's number)
SOURCE_STREAM, REFERENCE_STREAM, REAL_STREAM, GALLERY_STREAM = 10, 11, 12, 14
SPLIT_STREAMS = {**{split: i for i, split in enumerate(SPLITS)}, PRETRAINING: 13}
INDIVIDUALS_STREAM = 20  # of the individuals themselves

FAMILY = 10  # look-alikes of a split
LOOKALIKES = 50  # of the benchmark
SCENES_PER_INDIVIDUAL = 4  # each then has about ten pictures, since a scene shows two or three
CASES_PER_FAMILY = 20


@dataclass(frozen=True)
class Shapes:
    """Scenes of the twelve shapes. categories: classes of the annotations; columns: further ones of the annotations,
    attributes of a Look; attributes: a benchmark's file of what its cases show; least_seen: share of a reference
    that is visible."""

    categories = SHAPES
    columns: tuple[str, ...] = ()
    attributes = ATTRIBUTES
    least_seen = 0.0

    def split(self, name: str, count: int, number: int) -> Draw:
        """What the number-th of count scenes of a split shows."""
        return partial(draw_identity, held_out=name == PRETRAINING and number % 6 == 0)

    def bench(self, count: int, stream: int) -> Draw:
        """What scenes of a benchmark of count cases show. stream: SOURCE_STREAM, REFERENCE_STREAM or REAL_STREAM."""
        return partial(draw_identity, held_out=stream == REFERENCE_STREAM)


@dataclass(frozen=True)
class Individuals:
    """Scenes of individuals, with the members of Shapes. seed: of the individuals, not of the scenes."""

    seed: int
    categories = KINDS
    columns: tuple[str, ...] = ("object",)
    attributes = "individuals.json"
    least_seen = 0.9

    def split(self, name: str, count: int, number: int) -> Draw:
        families = max(1, round(count / SCENES_PER_INDIVIDUAL / FAMILY))
        return Population(name, self._seed(SPLIT_STREAMS[name]), families * FAMILY, FAMILY).draw

    def bench(self, count: int, stream: int) -> Draw:
        return self.population(count).draw

    def population(self, count: int) -> Population:
        """The individuals of a benchmark of count cases."""
        families = max(1, round(count / CASES_PER_FAMILY))
        return Population("bench", self._seed(REFERENCE_STREAM), families * LOOKALIKES, LOOKALIKES)

    def _seed(self, stream: int) -> tuple[int, ...]:
        return self.seed, INDIVIDUALS_STREAM, stream


World = Shapes | Individuals
THE_SHAPES = Shapes()
