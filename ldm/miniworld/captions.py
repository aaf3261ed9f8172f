"""Captions of the small world's objects, and their tokens, which its CLIP learns from."""

from __future__ import annotations

import numpy as np

from ldm.miniworld.identity import Colour, Identity, contrast
from ldm.miniworld.shapes import SHAPES

COLOURS = {  # name -> red, green, blue
    "red": (0.85, 0.1, 0.1), "orange": (0.95, 0.5, 0.1), "yellow": (0.95, 0.9, 0.2), "green": (0.15, 0.6, 0.15),
    "lime": (0.6, 0.95, 0.3), "turquoise": (0.25, 0.85, 0.8), "blue": (0.15, 0.25, 0.85), "sky blue": (0.5, 0.7, 0.95),
    "purple": (0.45, 0.1, 0.6), "magenta": (0.9, 0.2, 0.8), "pink": (0.98, 0.65, 0.75), "brown": (0.45, 0.28, 0.12),
    "dark green": (0.1, 0.32, 0.15), "navy": (0.08, 0.1, 0.4), "maroon": (0.42, 0.06, 0.15), "olive": (0.5, 0.5, 0.15),
    "beige": (0.88, 0.8, 0.62), "mint": (0.65, 0.92, 0.75), "lavender": (0.75, 0.68, 0.95),
}  # fmt: skip
ADJECTIVES = {"stripes": "striped", "dots": "dotted", "checks": "checked", "waves": "wavy", "halves": "halved"}


def colour_name(colour: Colour) -> str:
    """The nearest of COLOURS."""
    return min(COLOURS, key=lambda name: contrast(COLOURS[name], colour))


def shape_caption(shape: str) -> str:
    """For example "a star"."""
    return f"a {shape}"


def pattern_caption(pattern: str) -> str:
    """For example "a solid thing" or "a striped thing"."""
    return f"a {ADJECTIVES.get(pattern, pattern)} thing"


def caption(identity: Identity) -> str:
    """For example "a solid red star" or "a red and yellow striped star"."""
    first, second = colour_name(identity.colour), colour_name(identity.second)
    if identity.pattern == "solid":
        return f"a solid {first} {identity.shape}"
    return f"a {first} and {second} {ADJECTIVES[identity.pattern]} {identity.shape}"


_OTHER_WORDS = ("a", "and", "solid", "thing")
WORDS = tuple(sorted({*_OTHER_WORDS, *" ".join(COLOURS).split(), *ADJECTIVES.values(), *SHAPES}))
END = len(WORDS) + 1  # the token after a caption's last word; 0 is padding
CAPTION_LENGTH = 10  # tokens


def caption_tokens(text: str) -> np.ndarray:
    """A caption -> (CAPTION_LENGTH,) int64: numbers of its words, from 1, then END, then zeros."""
    numbers = [WORDS.index(word) + 1 for word in text.split()] + [END]
    return np.array(numbers + [0] * (CAPTION_LENGTH - len(numbers)))
