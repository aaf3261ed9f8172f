"""What a person asks for, on the page or by the call /edit, checked and with the types of the pipeline."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from ldm.editing.options import Sampling, check_seed
from ldm.util import UserError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class EditRequest:
    """image, mask, reference: as opened; mask: 255 = paint; seed: of the first of n_samples results.

    Raises UserError for a number that is out of range."""

    image: Image.Image
    mask: Image.Image
    reference: Image.Image
    sampling: Sampling = Sampling()
    seed: int = 321
    n_samples: int = 1

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise UserError(f"the number of pictures {self.n_samples} is out of range: use 1 or more")
        for seed in self.seeds:
            check_seed(seed)

    @property
    def seeds(self) -> list[int]:
        """One for each result."""
        return [self.seed + i for i in range(self.n_samples)]


def parse_number(value: object, name: str, kind: type[Number], example: str) -> Number:
    """A number as a browser or a call sends it, as text perhaps. Raises UserError: not a number of this kind."""
    try:
        if kind is int and not isinstance(value, str) and value != int(value):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        noun = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} {value!r:.40} is not {noun}: use for example {example}") from error


def parse_request(
    image: Image.Image,
    mask: Image.Image,
    reference: Image.Image,
    *,
    scale: object,
    steps: object,
    sampler: object,
    strength: object,
    seed: object,
    n_samples: object = 1,
) -> EditRequest:
    """seed: None or empty for a random one. Raises UserError: not a number, or one out of range."""
    sampling = Sampling(
        scale=parse_number(scale, "scale", float, "5"),
        sampler=str(sampler),
        steps=parse_number(steps, "steps", int, "50"),
        strength=parse_number(strength, "strength", float, "1"),
    )
    return EditRequest(
        image,
        mask,
        reference,
        sampling,
        seed=random.randrange(2**32) if seed in (None, "") else parse_number(seed, "seed", int, "321"),
        n_samples=parse_number(n_samples, "the number of pictures", int, "1"),
    )
