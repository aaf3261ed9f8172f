"""The twelve shapes of the small world's objects: their outlines, and maps of the distance to them."""

from __future__ import annotations

import functools

import cv2
import numpy as np

SHAPES = (
    *("circle", "square", "triangle", "star", "heart", "cross"),
    *("crescent", "ring", "drop", "arrow", "flower", "bolt"),
)
MAP_SIZE = 160  # pixels of a shape's map, which spans [-MAP_REACH, MAP_REACH] in both directions of the object
MAP_REACH = 1.25  # in radii of the object
BEVEL = 0.35  # width of the rounded edge, in radii of the object


def _around(radii: np.ndarray, angles: np.ndarray, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Polar coordinates (n,) around a centre -> points (n,2)."""
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


def _outline(shape: str) -> list[np.ndarray]:
    """Corners (n,2), x to the right and y down, of a shape with a radius of about 1; a second outline is a hole."""
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    up = -np.pi / 2
    match shape:
        case "circle":
            return [_around(np.full(200, 0.9), turn)]
        case "square":
            return [0.8 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])]
        case "triangle":
            return [_around(np.full(3, 1.1), up + np.arange(3) * 2 * np.pi / 3, (0.0, 0.2))]
        case "star":
            return [_around(np.where(np.arange(10) % 2, 0.45, 1.08), up + np.arange(10) * np.pi / 5)]
        case "heart":
            x = np.sin(turn) ** 3
            y = (13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 16
            return [np.stack([x, -y - 0.08], axis=1)]
        case "cross":
            a, b = 0.34, 0.98
            corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a)]
            return [np.array([*corners, (-a, -a)])]
        case "crescent":
            outer = np.linspace(0.28 * np.pi, 1.72 * np.pi, 120)
            tip_x, tip_y = np.cos(outer[0]), np.sin(outer[0])
            back = np.arctan2(tip_y, -0.06)  # the inner circle's middle is a little to the right of the tips
            inner = np.linspace(2 * np.pi - back, back, 120)
            return [
                np.concatenate([
                    _around(np.ones(120), outer, (0.25, 0.0)),
                    _around(np.full(120, np.hypot(0.06, tip_y)), inner, (tip_x + 0.31, 0.0)),
                ])
            ]  # fmt: skip
        case "ring":
            return [_around(np.full(200, 1.0), turn), _around(np.full(200, 0.48), turn)]
        case "drop":
            x = 0.72 * np.sin(turn) * np.sin(turn / 2) ** 1.6 * 1.15
            return [np.stack([x, -1.05 * np.cos(turn)], axis=1)]
        case "arrow":
            right = [(0.0, -1.05), (0.85, -0.1), (0.36, -0.1), (0.36, 1.0)]
            return [np.array([*right, *[(-x, y) for x, y in right[:0:-1]]])]
        case "flower":
            return [_around(0.78 + 0.24 * np.cos(6 * turn), turn)]
        case "bolt":
            corners = [(0.3, -1.1), (-0.65, 0.18), (-0.08, 0.18), (-0.3, 1.1), (0.65, -0.25), (0.08, -0.25)]
            return [np.array(corners)]
    raise ValueError(shape)


@functools.cache
def shape_map(shape: str) -> np.ndarray:
    """The relief of one of SHAPES."""
    return relief(_outline(shape))


def relief(outlines: list[np.ndarray], finer: int = 4) -> np.ndarray:
    """Corners (n,2) of an outline with a radius of about 1, and of holes in it -> (MAP_SIZE,MAP_SIZE,3) float32 over
    [-MAP_REACH, MAP_REACH] in x and y: the distance to the outline, positive inside, and the slope of the surface in x
    and in y, which is not 0 along the rounded edge. finer: how many times larger it is computed."""
    fine = finer * MAP_SIZE
    corners = [np.round((outline + MAP_REACH) / (2 * MAP_REACH) * fine * 16).astype(np.int32) for outline in outlines]
    inside = np.zeros((fine, fine), np.uint8)
    cv2.fillPoly(inside, corners, 1, lineType=cv2.LINE_8, shift=4)  # even-odd: the inside of a second outline is a hole
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    distance = cv2.resize(distance, (MAP_SIZE, MAP_SIZE), interpolation=cv2.INTER_AREA) * (2 * MAP_REACH / fine)
    depth = np.clip(distance / BEVEL, 0.0, 1.0)
    height = cv2.GaussianBlur(BEVEL * np.sqrt(1.0 - (1.0 - depth) ** 2), (0, 0), 2.0)
    slopes = np.gradient(height, 2 * MAP_REACH / MAP_SIZE)
    return np.stack([distance, slopes[1], slopes[0]], axis=-1).astype(np.float32)
