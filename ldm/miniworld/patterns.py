"""The six patterns of the small world's objects."""

from __future__ import annotations

import numpy as np

PATTERNS = ("solid", "stripes", "dots", "checks", "waves", "halves")


def pattern_share(pattern: str, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    """The share of the second colour at the points (x, y) of the object's plane, 0 to 1. pixel: its width there."""

    def step(value: np.ndarray) -> np.ndarray:
        """0 below 0 and 1 above, with an edge as wide as a pixel."""
        return np.clip(value / pixel + 0.5, 0.0, 1.0)

    def wave(value: np.ndarray, period: float) -> np.ndarray:
        """Distance to the nearest edge of stripes, positive inside every second one."""
        return (0.25 - np.abs((value / period) % 1.0 - 0.5)) * period

    match pattern:
        case "solid":
            return np.zeros_like(x)
        case "stripes":
            return step(wave(x, 0.62))
        case "dots":
            return step(0.2 - np.hypot((x + 0.28) % 0.56 - 0.28, (y + 0.28) % 0.56 - 0.28))
        case "checks":
            a, b = step(wave(x - 0.2, 0.8)), step(wave(y - 0.2, 0.8))
            return a + b - 2 * a * b
        case "waves":
            return step(wave(y + 0.14 * np.sin(6.0 * x), 0.58))
        case "halves":
            return step(x)
    raise ValueError(pattern)
