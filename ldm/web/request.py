"""What a person asks for, on the page or by the call /edit, checked and with the types of the pipeline."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from ldm.util import UserError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class EditRequest:
    """Arguments of PaintByExample.__call__. mask: 255 = paint; seed: of the first of n_samples results."""

    image: Image.Image
    mask: Image.Image
    reference: Image.Image
    scale: float = 5.0
    steps: int = 50
    sampler: str = "plms"
    strength: float = 1.0
    seed: int = 321
    n_samples: int = 1


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
    """seed: None or empty for a random one. Raises UserError: something is not a number."""
    return EditRequest(
        image,
        mask,
        reference,
        scale=parse_number(scale, "scale", float, "5"),
        steps=parse_number(steps, "steps", int, "50"),
        sampler=str(sampler),
        strength=parse_number(strength, "strength", float, "1"),
        seed=random.randrange(2**32) if seed in (None, "") else parse_number(seed, "seed", int, "321"),
        n_samples=parse_number(n_samples, "the number of pictures", int, "1"),
    )
