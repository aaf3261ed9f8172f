"""What the small world's scenes show: the twelve shapes, or individuals.

No individual is in two splits, and those of the benchmark are in no split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ldm.data.index import SPLITS
from ldm.miniworld.crops import ATTRIBUTES
from ldm.miniworld.identity import Identity, draw_held_out, draw_identity
from ldm.miniworld.individuals import KINDS, Population
from ldm.miniworld.scene import Look
from ldm.miniworld.shapes import SHAPES

Draw = Callable[[np.random.Generator], Look]

PRETRAINING = "pretraining"
# a scene's seed is (the world's seed, one of these, the scene's number)
SOURCE_STREAM, REFERENCE_STREAM, REAL_STREAM, GALLERY_STREAM = 10, 11, 12, 14
SPLIT_STREAMS = {**{split: i for i, split in enumerate(SPLITS)}, PRETRAINING: 13}
INDIVIDUALS_STREAM, SHAPES_STREAM = 20, 21  # of the objects themselves

FAMILY = 10  # look-alikes of a split
LOOKALIKES = 50  # of the benchmark
SCENES_PER_OBJECT = 4  # each then has about ten pictures, since a scene shows two or three
SHAPES_EVERY = 3  # scenes: one of so many shows shapes
CASES_PER_FAMILY = 20


class Shapes:
    """Scenes of the twelve shapes. categories: classes of the annotations; columns: further ones of the annotations,
    attributes of a Look; attributes: a benchmark's file of what its cases show; least_seen: share of a reference
    that is visible."""

    categories = SHAPES
    columns: tuple[str, ...] = ()
    attributes = ATTRIBUTES
    least_seen = 0.0

    def split(self, name: str, count: int, number: int) -> Draw:
        """What the number-th of count scenes of a split shows. Only PRETRAINING shows held-out pairs, in every sixth
        scene, because they are a sixth of all pairs."""
        return draw_held_out if name == PRETRAINING and number % 6 == 0 else draw_identity

    def bench(self, count: int, stream: int) -> Draw:
        """What scenes of a benchmark of count cases show. stream: SOURCE_STREAM, REFERENCE_STREAM or REAL_STREAM."""
        return draw_held_out if stream == REFERENCE_STREAM else draw_identity


@dataclass(frozen=True)
class Individuals:
    """Scenes of individuals, with the members of Shapes. seed: of the individuals, not of the scenes.

    Every third scene to train on shows objects of the twelve shapes instead, each in as many pictures as an individual,
    so that what learns from pairs of individuals does not forget shapes."""

    seed: int

    categories: ClassVar = (*KINDS, *SHAPES)
    columns: ClassVar[tuple[str, ...]] = ("object",)
    attributes: ClassVar = "individuals.json"
    least_seen: ClassVar = 0.9

    def split(self, name: str, count: int, number: int) -> Draw:
        shapes = len(range(0, count, SHAPES_EVERY)) if name == "train" else 0
        if shapes and number % SHAPES_EVERY == 0:
            return self._shapes(max(1, round(shapes / SCENES_PER_OBJECT)))
        families = max(1, round((count - shapes) / SCENES_PER_OBJECT / FAMILY))
        return self._population(name, SPLIT_STREAMS[name], families, FAMILY).draw

    def bench(self, count: int, stream: int) -> Draw:
        return self.population(count).draw

    def population(self, count: int) -> Population:
        """The individuals of a benchmark of count cases."""
        return self._population("bench", REFERENCE_STREAM, max(1, round(count / CASES_PER_FAMILY)), LOOKALIKES)

    def _shapes(self, count: int) -> Draw:
        """Draws one of `count` identities, none of which is held out."""

        def draw(rng: np.random.Generator) -> Identity:
            return draw_identity(np.random.default_rng((self.seed, SHAPES_STREAM, int(rng.integers(count)))))

        return draw

    def _population(self, name: str, stream: int, families: int, family: int) -> Population:
        return Population(name, (self.seed, INDIVIDUALS_STREAM, stream), families * family, family)


World = Shapes | Individuals
DEFAULT_WORLD = Shapes()
