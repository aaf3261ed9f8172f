"""The light of a scene of the small world, and the ground that it falls on."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Light:
    """direction: unit vector (x, y, z) towards the light, z up from the table. colour: factors of red, green and blue.
    ambient, diffuse, gloss: strengths of the three terms."""

    direction: np.ndarray
    colour: np.ndarray
    ambient: float
    diffuse: float
    gloss: float


def draw_light(rng: np.random.Generator) -> Light:
    """A random light."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1)
    flat = np.cos(elevation)
    direction = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    warm = rng.uniform(-0.07, 0.07)
    return Light(
        direction,
        np.array([1 + warm, 1.0, 1 - warm]),
        rng.uniform(0.35, 0.55),
        rng.uniform(0.55, 0.75),
        rng.uniform(0, 0.35),
    )


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise (H,W) of about [-1,1], interpolated from cells x cells values. size: (width, height)."""
    rough = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC) * 0.6


def draw_ground(rng: np.random.Generator, size: tuple[int, int], light: Light) -> np.ndarray:
    """A random table or cloth, (H,W,3) float32 of about [0,1]: two muted colours, a texture, and a gradient away from
    the light. size: (width, height)."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(size)
    first = np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.35), rng.uniform(0.35, 0.85)))
    other = np.clip(first + rng.normal(0, 0.09, 3), 0.1, 0.95)
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    broad = _noise(rng, size, 5)
    match rng.integers(4):
        case 0:  # mottled
            mix = 0.5 + 0.5 * broad
        case 1:  # grain of wood
            mix = 0.5 + 0.4 * np.sin(across * rng.uniform(50, 90) + 3.0 * broad) + 0.1 * _noise(rng, size, 40)
        case 2:  # tiles
            period = rng.uniform(0.16, 0.3)
            edge = np.minimum(np.abs(along / period % 1 - 0.5), np.abs(across / period % 1 - 0.5))
            mix = np.clip(edge * period * max(size) / 1.5, 0, 1) + 0.2 * broad
        case _:  # weave
            mix = (
                0.5
                + 0.25 * np.sin(along * rng.uniform(90, 130))
                + 0.25 * np.sin(across * rng.uniform(90, 130))
                + 0.2 * broad
            )
    ground = first + np.clip(mix, -0.2, 1.2)[..., None] * (other - first)
    fall = 1.0 + 0.35 * ((x - 0.5) * light.direction[0] + (y - 0.4) * light.direction[1])
    return (ground * fall[..., None] * light.colour).astype(np.float32)
