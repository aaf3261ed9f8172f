"""A small world to learn the method in: pictures of painted shapes on a table, each drawn by formula from its seed.

A scene has a lit and textured ground and several objects on it: shapes (ldm.miniworld.identity) or individuals
(ldm.miniworld.individuals). They are turned by up to 40 degrees, of different sizes, in slight perspective, with
rounded edges that the light shades and with cast shadows, and they may partly hide one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ldm.data.masks import Box
from ldm.miniworld.identity import Identity, draw_identity
from ldm.miniworld.individuals import Individual
from ldm.miniworld.light import Light, draw_ground, draw_light
from ldm.miniworld.shapes import MAP_REACH, MAP_SIZE

MIN_VISIBLE = 0.6  # share of an object that must be visible for it to be annotated
MAX_ROTATION = np.radians(40)  # of an object, either way
Look = Identity | Individual


@dataclass(frozen=True)
class Object:
    """An object of a scene. box: (x0, y0, x1, y1) of its visible part, in pixels, ends exclusive; seen: the visible
    share, 0 to 1; angle: in degrees, counterclockwise; radius: in pixels."""

    identity: Look
    box: Box
    seen: float
    angle: float
    radius: float


@dataclass(frozen=True)
class _Rendered:
    """An object's pixels: rows and columns of the picture, its colours (h,w,3) there and its coverage (h,w), 0 to 1."""

    rows: slice
    columns: slice
    colours: np.ndarray
    coverage: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """(h,w) bool: pixels of which the object covers more than half."""
        return self.coverage > 0.5


@dataclass(frozen=True)
class _Placed:
    """An object in a scene. area: its pixels if nothing hid it; angle: in radians; radius: in pixels."""

    identity: Look
    area: float
    angle: float
    radius: float


def scene(
    seed: int | tuple[int, ...],
    size: tuple[int, int] = (160, 120),
    objects: tuple[int, int] = (2, 3),
    draw: Callable[[np.random.Generator], Look] = draw_identity,
) -> tuple[np.ndarray, list[Object]]:
    """A scene; equal arguments draw equal scenes.

    size: (width, height) in pixels; objects: their minimum and maximum number; draw: the look of each object.
    -> picture (H,W,3) uint8, and the objects of which enough is visible, from the lowest to the topmost."""
    picture, outlined = outlined_scene(seed, size, objects, draw)
    return picture, [each for each, _ in outlined]


def outlined_scene(
    seed: int | tuple[int, ...],
    size: tuple[int, int] = (160, 120),
    objects: tuple[int, int] = (2, 3),
    draw: Callable[[np.random.Generator], Look] = draw_identity,
) -> tuple[np.ndarray, list[tuple[Object, np.ndarray]]]:
    """As scene, with the visible pixels (H,W) bool beside each object."""
    rng = np.random.default_rng(seed)
    light = draw_light(rng)
    image = draw_ground(rng, size, light)
    owner = np.full(image.shape[:2], -1)  # the number of the object that a pixel shows, -1 for the ground
    placed: list[_Placed] = []
    centres: list[np.ndarray] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        radius = min(size) * rng.uniform(0.26, 0.42)
        centre = _free_centre(rng, size, radius, centres)
        if centre is None:
            continue
        centres.append(centre)
        identity, angle = draw(rng), rng.uniform(-MAX_ROTATION, MAX_ROTATION)
        drawn = _render(identity, _pose(rng, centre, radius, angle), size, light)
        if drawn is None:
            continue
        _cast_shadow(image, drawn, light, radius)
        view = image[drawn.rows, drawn.columns]
        view += drawn.coverage[..., None] * (drawn.colours - view)
        owner[drawn.rows, drawn.columns][drawn.covered] = len(placed)
        placed.append(_Placed(identity, float(drawn.covered.sum()), angle, radius))
    image += rng.normal(0, 0.008, image.shape)
    return (np.clip(image, 0.0, 1.0) * 255.0).round().astype(np.uint8), _visible_objects(placed, owner)


def _free_centre(
    rng: np.random.Generator, size: tuple[int, int], radius: float, centres: list[np.ndarray]
) -> np.ndarray | None:
    """A random centre for an object that may overlap others without covering one. None: 20 attempts found no such
    place."""
    for _ in range(20):
        centre = rng.uniform((radius * 0.8, radius * 0.8), np.subtract(size, radius * 0.8))
        if all(np.linalg.norm(centre - other) > 1.15 * radius for other in centres):
            return centre
    return None


def _visible_objects(placed: list[_Placed], owner: np.ndarray) -> list[tuple[Object, np.ndarray]]:
    """The objects of which enough is visible, and their pixels (H,W) bool. owner (H,W): the number of the object that
    each pixel shows."""
    found = []
    for i, each in enumerate(placed):
        ys, xs = np.nonzero(owner == i)
        min_area = np.pi * each.radius**2 * 0.1  # less is a sliver at the picture's border
        if each.area > min_area and len(ys) >= MIN_VISIBLE * each.area:
            box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            angle = float(np.degrees(each.angle))
            found.append((Object(each.identity, box, len(ys) / each.area, angle, each.radius), owner == i))
    return found


def _pose(rng: np.random.Generator, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Homography (3,3) from the object's plane to pixels: rotation, size, slight foreshortening in one direction, and
    slight perspective."""
    lean = rng.uniform(0, 2 * np.pi)
    turn, axis = _rotation(-angle), _rotation(lean)
    linear = axis @ np.diag([radius, radius * rng.uniform(0.75, 1.0)]) @ axis.T @ turn
    tilt = rng.uniform(-0.12, 0.12, 2)
    pose = np.eye(3)
    pose[:2, :2], pose[:2, 2] = linear + np.outer(centre, tilt), centre
    pose[2, :2] = tilt
    return pose


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _render(identity: Look, pose: np.ndarray, size: tuple[int, int], light: Light) -> _Rendered | None:
    """Draws an object by itself. None: it lies outside the picture."""
    square = MAP_REACH * np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]).T
    square[2] = 1.0
    corners = pose @ square
    corners = corners[:2] / corners[2]
    x0, y0 = np.maximum(np.floor(corners.min(axis=1)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=1)).astype(int), size)
    if x0 >= x1 or y0 >= y1:
        return None
    back = np.linalg.inv(pose)
    ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float64) + 0.5
    u, v, w = (row[0] * xs + row[1] * ys + row[2] for row in back)
    u, v = (u / w).astype(np.float32), (v / w).astype(np.float32)
    to_map = (MAP_SIZE / (2 * MAP_REACH), MAP_SIZE / 2 - 0.5)
    layers = cv2.remap(
        identity.relief(), u * to_map[0] + to_map[1], v * to_map[0] + to_map[1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(-1.0, 0.0, 0.0),
    )  # fmt: skip
    pixel = 1.0 / np.sqrt(abs(np.linalg.det(pose[:2, :2])))
    coverage = np.clip(layers[..., 0] / pixel + 0.5, 0.0, 1.0)
    turned = layers[..., 1:] @ np.linalg.inv(pose[:2, :2] * pixel).astype(np.float32)  # slopes, from object to picture
    normal = np.concatenate([-turned, np.ones_like(turned[..., :1])], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    facing = np.clip(normal @ light.direction, 0.0, 1.0)
    half = light.direction + np.array([0.0, 0.0, 1.0])
    shine = np.clip(normal @ (half / np.linalg.norm(half)), 0.0, 1.0) ** 30
    shaded = identity.albedo(u, v, pixel) * (light.ambient + light.diffuse * facing)[..., None] * light.colour
    return _Rendered(slice(y0, y1), slice(x0, x1), shaded + light.gloss * shine[..., None], coverage)


def _cast_shadow(image: np.ndarray, drawn: _Rendered, light: Light, radius: float) -> None:
    """Darkens the picture around the object, on the side away from the light, in place."""
    rows, columns = drawn.rows, drawn.columns
    height, width = image.shape[:2]
    away = -light.direction[:2] / light.direction[2] * radius * 0.28
    margin = int(np.ceil(radius * 0.5))
    top, left = max(rows.start - margin, 0), max(columns.start - margin, 0)
    bottom, right = min(rows.stop + margin, height), min(columns.stop + margin, width)
    shift = np.float32([[1, 0, columns.start - left + away[0]], [0, 1, rows.start - top + away[1]]])
    shadow = cv2.warpAffine(drawn.coverage.astype(np.float32), shift, (right - left, bottom - top))
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(0.8, radius * 0.06))
    image[top:bottom, left:right] *= 1.0 - 0.55 * shadow[..., None]
