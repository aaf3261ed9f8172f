"""The identity of an object of the small world: its shape, its pattern and two colours.

One in six pairs of shape and pattern is held out from training."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from ldm.miniworld.patterns import PATTERNS, pattern_share
from ldm.miniworld.shapes import SHAPES, shape_map

Colour = tuple[float, float, float]  # red, green, blue in [0,1]

HELD_OUT = frozenset((shape, PATTERNS[(i * 5 + 2) % len(PATTERNS)]) for i, shape in enumerate(SHAPES))
MIN_CONTRAST = 0.45  # between an object's two colours; 1 is that of black and white


@dataclass(frozen=True)
class Identity:
    """What an object looks like, in any pose and light. colour fills the shape, second is the pattern's colour; they
    are equal for a solid object."""

    shape: str
    pattern: str
    colour: Colour
    second: Colour

    @property
    def category(self) -> str:
        """Its class in the annotations."""
        return self.shape

    @property
    def object(self) -> str:
        """Its name: what it looks like, as in star-checks-c04a1f-f2e0b3."""
        colours = (bytes(round(255 * part) for part in colour).hex() for colour in (self.colour, self.second))
        return "-".join((self.shape, self.pattern, *colours))

    def relief(self) -> np.ndarray:
        """Distances to the outline and slopes, as ldm.miniworld.shapes.relief."""
        return shape_map(self.shape)

    def albedo(self, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
        """Colours (h,w,3) in [0,1] at the points (x, y) of the object's plane. pixel: its width there."""
        share = pattern_share(self.pattern, x, y, pixel)[..., None]
        return np.array(self.colour) + share * np.subtract(self.second, self.colour)


def contrast(a: Colour, b: Colour) -> float:
    """Distance of two colours, with rough weights for the eye's sensitivity to red, green and blue; at most 1."""
    return float(np.sqrt(np.subtract(a, b) ** 2 @ (0.3, 0.5, 0.2)))


def draw_identity(rng: np.random.Generator, held_out: bool = False) -> Identity:
    """A random identity. held_out: whether its pair of shape and pattern is one of HELD_OUT."""
    while True:
        shape, pattern = SHAPES[rng.integers(len(SHAPES))], PATTERNS[rng.integers(len(PATTERNS))]
        if ((shape, pattern) in HELD_OUT) == held_out:
            break
    colour = random_colour(rng)
    second = colour
    while pattern != "solid" and contrast(colour, second) < MIN_CONTRAST:
        second = random_colour(rng)
    return Identity(shape, pattern, colour, second)


def draw_held_out(rng: np.random.Generator) -> Identity:
    """A random identity that training never shows."""
    return draw_identity(rng, held_out=True)


def random_colour(rng: np.random.Generator) -> Colour:
    """A colour that is neither grey nor dark."""
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.35, 1.0), rng.uniform(0.3, 1.0))
