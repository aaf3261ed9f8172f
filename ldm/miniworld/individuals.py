"""Individuals of the small world: objects with an outline and a texture of their own.

Individuals come in families of look-alikes: those of a family share the kind of texture and the colours, and differ in
outline and in the texture's details. A class can name the family, but not the individual."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from ldm.miniworld.identity import MIN_CONTRAST, Colour, contrast, random_colour
from ldm.miniworld.shapes import MAP_REACH, MAP_SIZE, relief

KINDS = ("spots", "noise", "glyphs", "logo")  # of texture
RADIUS = 1.1  # of the outline's farthest corner; that of the twelve shapes is about the same
FINE = 2  # reliefs and textures are drawn this many times larger
MARGIN = 0.08  # radii from the outline within which no spot has its middle


@dataclass(frozen=True)
class Individual:
    """One object, in any pose and light. object: its name; kind: one of KINDS; colours: of the ground, and two of the
    texture; seed: of its outline and of the texture's details."""

    object: str
    kind: str
    colours: tuple[Colour, Colour, Colour]
    seed: tuple[int, ...]

    @property
    def category(self) -> str:
        """Its class in the annotations."""
        return self.kind

    def relief(self) -> np.ndarray:
        """Distances to the outline and slopes, as ldm.miniworld.shapes.relief."""
        return _maps(self)[0]

    def albedo(self, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
        """Colours (h,w,3) in [0,1] at the points (x, y) of the object's plane. pixel: its width there."""
        scale, middle = MAP_SIZE / (2 * MAP_REACH), MAP_SIZE / 2 - 0.5
        return cv2.remap(_maps(self)[1], x * scale + middle, y * scale + middle, cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Population:
    """The individuals that a part of the data shows. name: begins their names; seed: of all; count: how many there are;
    family: how many of them, one after the other, look alike."""

    name: str
    seed: tuple[int, ...]
    count: int
    family: int

    def __getitem__(self, number: int) -> Individual:
        """number: 0 to count - 1."""
        family = number // self.family
        rng = np.random.default_rng((*self.seed, 0, family))
        kind, colours = KINDS[family % len(KINDS)], _draw_colours(rng)
        return Individual(f"{self.name}-{number:05}", kind, colours, (*self.seed, 1, number))

    def draw(self, rng: np.random.Generator) -> Individual:
        """A random one."""
        return self[int(rng.integers(self.count))]

    def everyone(self) -> list[Individual]:
        """All of them, in order."""
        return [self[number] for number in range(self.count)]

    def lookalikes(self, individual: Individual) -> list[Individual]:
        """Its family, itself included."""
        first = individual.seed[-1] // self.family * self.family
        return [self[number] for number in range(first, min(first + self.family, self.count))]


def _draw_colours(rng: np.random.Generator) -> tuple[Colour, Colour, Colour]:
    """Three colours of which each two can be told apart."""
    while True:
        first, second, third = (random_colour(rng) for _ in range(3))
        if min(contrast(first, second), contrast(first, third)) > MIN_CONTRAST and contrast(second, third) > 0.25:
            return first, second, third


@functools.lru_cache(32)  # 0.6 MB each
def _maps(individual: Individual) -> tuple[np.ndarray, np.ndarray]:
    """relief, and texture (MAP_SIZE,MAP_SIZE,3) float32, colours in [0,1]."""
    rng = np.random.default_rng(individual.seed)
    shape = relief([draw_outline(rng)], FINE)
    return shape, draw_texture(rng, individual.kind, individual.colours, shape[..., 0] > MARGIN)


def draw_outline(rng: np.random.Generator) -> np.ndarray:
    """A random smooth polygon, corners (n,2), with a radius of RADIUS. Corners at random distances from the middle are
    rounded by cutting them (Chaikin 1974), which tends to a quadratic B-spline."""
    count = int(rng.integers(6, 11))
    turn = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi)
    corners = rng.uniform(0.35, 1.0, count)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    for _ in range(4):
        following = np.roll(corners, -1, axis=0)
        corners = np.stack([0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following], axis=1)
        corners = corners.reshape(-1, 2)
    corners -= (corners.min(axis=0) + corners.max(axis=0)) / 2
    return corners * RADIUS / np.linalg.norm(corners, axis=1).max()


def draw_texture(
    rng: np.random.Generator, kind: str, colours: tuple[Colour, Colour, Colour], inside: np.ndarray
) -> np.ndarray:
    """(MAP_SIZE,MAP_SIZE,3) float32, colours in [0,1], over [-MAP_REACH, MAP_REACH] in x and y. kind: one of KINDS;
    inside (MAP_SIZE,MAP_SIZE) bool: where spots, glyphs and strokes may have their middle or their ends."""
    side = FINE * MAP_SIZE
    unit = side / (2 * MAP_REACH)  # pixels of a radius
    image = np.full((side, side, 3), colours[0], np.float32)
    places = FINE * np.argwhere(inside)[:, ::-1]

    def place() -> np.ndarray:
        """A random point (x, y), in pixels."""
        return places[rng.integers(len(places))]

    def line(points: np.ndarray, thickness: float, colour: Colour) -> None:
        cv2.polylines(image, [np.round(points).astype(np.int32)], False, colour, int(thickness))

    match kind:
        case "spots":
            for i in range(int(rng.integers(5, 10))):
                cv2.circle(image, place().tolist(), int(unit * rng.uniform(0.1, 0.26)), colours[1 + i % 2], -1)
        case "noise":
            for colour, level in zip(colours[1:], (0.1, 0.7), strict=True):
                rough = rng.normal(size=(9, 9)).astype(np.float32)
                image[cv2.resize(rough, (side, side), interpolation=cv2.INTER_CUBIC) > level] = colour
        case "glyphs":
            for i in range(int(rng.integers(3, 6))):
                angle, height = rng.uniform(-0.8, 0.8), unit * rng.uniform(0.2, 0.34)
                turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
                line(place() + height * _draw_glyph(rng) @ turn, 0.3 * height, colours[1 + i % 2])
        case "logo":
            for i in range(int(rng.integers(3, 5))):
                start, bend, end = np.array([place() for _ in range(3)])
                t = np.linspace(0, 1, 30)[:, None]
                curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
                line(curve, unit * rng.uniform(0.1, 0.2), colours[1 + i % 2])
        case _:
            raise ValueError(kind)
    return cv2.GaussianBlur(cv2.resize(image, (MAP_SIZE, MAP_SIZE), interpolation=cv2.INTER_AREA), (0, 0), 0.6)


def _draw_glyph(rng: np.random.Generator) -> np.ndarray:
    """A letter of no alphabet: a line through 4 to 6 of the 12 points of a grid, (n,2), between -1 and 1."""
    grid = np.stack(np.meshgrid(np.linspace(-0.7, 0.7, 3), np.linspace(-1, 1, 4)), axis=-1).reshape(-1, 2)
    return rng.permutation(grid)[: int(rng.integers(4, 7))]
