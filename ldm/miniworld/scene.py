"""A small world to learn the method in: pictures of painted shapes on a table, drawn by formula, each from its seed.

An object's identity is its shape, its pattern and two colours. A scene has a lit and textured ground and several
objects on it, turned by up to 40 degrees, of any size, in slight perspective, with rounded edges that the light shades,
with cast shadows, and partly behind one another. One in six pairs of shape and pattern is held out: training never
shows it, the benchmark shows nothing else.
"""

from __future__ import annotations

import colorsys
import functools
from dataclasses import dataclass

import cv2
import numpy as np

from ldm.data.masks import Box

Colour = tuple[float, float, float]  # red, green, blue in [0,1]

SHAPES = (
    *("circle", "square", "triangle", "star", "heart", "cross"),
    *("crescent", "ring", "drop", "arrow", "flower", "bolt"),
)
PATTERNS = ("solid", "stripes", "dots", "checks", "waves", "halves")
HELD_OUT = frozenset((shape, PATTERNS[(i * 5 + 2) % len(PATTERNS)]) for i, shape in enumerate(SHAPES))
MAP = 160  # pixels of a shape's map, which spans [-1.25, 1.25] in both directions of the object
REACH = 1.25
BEVEL = 0.35  # width of the rounded edge, of an object of radius 1
LEAST_CONTRAST = 0.45  # between an object's two colours, of 1 from black to white
SHOWN = 0.6  # share of an object that has to be seen for it to be annotated
MOST_TURNED = np.radians(40)  # of an object, either way


@dataclass(frozen=True)
class Identity:
    """What an object is, whatever its pose and light: shape, pattern, the colour that fills it and that of the pattern
    (of a solid one, the same)."""

    shape: str
    pattern: str
    colour: Colour
    second: Colour


@dataclass(frozen=True)
class Object:
    """An object of a scene. box: x0, y0, x1, y1 of what is seen of it, in pixels, ends exclusive; seen: that share of
    it; angle: in degrees, counterclockwise; radius: in pixels."""

    identity: Identity
    box: Box
    seen: float
    angle: float
    radius: float


# --------------------------------------------------------------------------------------------- identities


def contrast(a: Colour, b: Colour) -> float:
    """Distance of two colours, the eye's different sensitivity to red, green and blue taken roughly into account."""
    return float(np.sqrt(np.subtract(a, b) ** 2 @ (0.3, 0.5, 0.2)))


def draw_identity(rng: np.random.Generator, held_out: bool = False) -> Identity:
    """held_out: of the pairs of shape and pattern that training never shows, or of the others."""
    while True:
        shape, pattern = SHAPES[rng.integers(len(SHAPES))], PATTERNS[rng.integers(len(PATTERNS))]
        if ((shape, pattern) in HELD_OUT) == held_out:
            break
    colour = _vivid(rng)
    second = colour
    while pattern != "solid" and contrast(colour, second) < LEAST_CONTRAST:
        second = _vivid(rng)
    return Identity(shape, pattern, colour, second)


def _vivid(rng: np.random.Generator) -> Colour:
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.35, 1.0), rng.uniform(0.3, 1.0))


COLOURS = {  # name -> red, green, blue
    "red": (0.85, 0.1, 0.1), "orange": (0.95, 0.5, 0.1), "yellow": (0.95, 0.9, 0.2), "green": (0.15, 0.6, 0.15),
    "lime": (0.6, 0.95, 0.3), "turquoise": (0.25, 0.85, 0.8), "blue": (0.15, 0.25, 0.85), "sky blue": (0.5, 0.7, 0.95),
    "purple": (0.45, 0.1, 0.6), "magenta": (0.9, 0.2, 0.8), "pink": (0.98, 0.65, 0.75), "brown": (0.45, 0.28, 0.12),
    "dark green": (0.1, 0.32, 0.15), "navy": (0.08, 0.1, 0.4), "maroon": (0.42, 0.06, 0.15), "olive": (0.5, 0.5, 0.15),
    "beige": (0.88, 0.8, 0.62), "mint": (0.65, 0.92, 0.75), "lavender": (0.75, 0.68, 0.95),
}  # fmt: skip
ADJECTIVES = {"stripes": "striped", "dots": "dotted", "checks": "checked", "waves": "wavy", "halves": "halved"}


def colour_name(colour: Colour) -> str:
    return min(COLOURS, key=lambda name: contrast(COLOURS[name], colour))


def shape_caption(shape: str) -> str:
    """ "a star"."""
    return f"a {shape}"


def pattern_caption(pattern: str) -> str:
    """ "a solid thing", "a striped thing"."""
    return f"a {ADJECTIVES.get(pattern, pattern)} thing"


def caption(identity: Identity) -> str:
    """ "a solid red star", "a red and yellow striped star"."""
    first, second = colour_name(identity.colour), colour_name(identity.second)
    if identity.pattern == "solid":
        return f"a solid {first} {identity.shape}"
    return f"a {first} and {second} {ADJECTIVES[identity.pattern]} {identity.shape}"


_OPEN = ("a", "and", "solid", "thing")
WORDS = tuple(sorted({*_OPEN, *" ".join(COLOURS).split(), *ADJECTIVES.values(), *SHAPES}))
END = len(WORDS) + 1  # the token after a caption's last word; 0 fills up
CAPTION_LENGTH = 10  # tokens


def caption_tokens(text: str) -> np.ndarray:
    """A caption -> (CAPTION_LENGTH,) int64: its words by number from 1, END, and zeros."""
    numbers = [WORDS.index(word) + 1 for word in text.split()] + [END]
    return np.array(numbers + [0] * (CAPTION_LENGTH - len(numbers)))


# ------------------------------------------------------------------------------------------------- shapes


def _polygon(radii: np.ndarray, angles: np.ndarray, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


def _outline(shape: str) -> list[np.ndarray]:
    """Corners (n,2), x to the right and y down, radius about 1; a second outline is a hole."""
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    up = -np.pi / 2
    match shape:
        case "circle":
            return [_polygon(np.full(200, 0.9), turn)]
        case "square":
            return [0.8 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])]
        case "triangle":
            return [_polygon(np.full(3, 1.1), up + np.arange(3) * 2 * np.pi / 3, (0.0, 0.2))]
        case "star":
            return [_polygon(np.where(np.arange(10) % 2, 0.45, 1.08), up + np.arange(10) * np.pi / 5)]
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
                    _polygon(np.ones(120), outer, (0.25, 0.0)),
                    _polygon(np.full(120, np.hypot(0.06, tip_y)), inner, (tip_x + 0.31, 0.0)),
                ])
            ]  # fmt: skip
        case "ring":
            return [_polygon(np.full(200, 1.0), turn), _polygon(np.full(200, 0.48), turn)]
        case "drop":
            x = 0.72 * np.sin(turn) * np.sin(turn / 2) ** 1.6 * 1.15
            return [np.stack([x, -1.05 * np.cos(turn)], axis=1)]
        case "arrow":
            right = [(0.0, -1.05), (0.85, -0.1), (0.36, -0.1), (0.36, 1.0)]
            return [np.array([*right, *[(-x, y) for x, y in right[:0:-1]]])]
        case "flower":
            return [_polygon(0.78 + 0.24 * np.cos(6 * turn), turn)]
        case "bolt":
            corners = [(0.3, -1.1), (-0.65, 0.18), (-0.08, 0.18), (-0.3, 1.1), (0.65, -0.25), (0.08, -0.25)]
            return [np.array(corners)]
    raise ValueError(shape)


@functools.cache
def shape_map(shape: str) -> np.ndarray:
    """(MAP,MAP,3) float32 over [-REACH, REACH]: the distance to the outline, positive inside, and the surface's slope
    in x and y, which the rounded edge has."""
    fine = 4 * MAP
    corners = [np.round((outline + REACH) / (2 * REACH) * fine * 16).astype(np.int32) for outline in _outline(shape)]
    inside = np.zeros((fine, fine), np.uint8)
    cv2.fillPoly(inside, corners, 1, lineType=cv2.LINE_8, shift=4)  # the second outline's inside is out again
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    distance = cv2.resize(distance, (MAP, MAP), interpolation=cv2.INTER_AREA) * (2 * REACH / fine)
    depth = np.clip(distance / BEVEL, 0.0, 1.0)
    height = cv2.GaussianBlur(BEVEL * np.sqrt(1.0 - (1.0 - depth) ** 2), (0, 0), 2.0)
    slopes = np.gradient(height, 2 * REACH / MAP)
    return np.stack([distance, slopes[1], slopes[0]], axis=-1).astype(np.float32)


def pattern_share(pattern: str, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    """How much of the second colour there is at each point of the object, 0 to 1. soft: width of a pixel there."""

    def step(value: np.ndarray) -> np.ndarray:
        """0 below 0, 1 above, blurred over a pixel."""
        return np.clip(value / soft + 0.5, 0.0, 1.0)

    def wave(value: np.ndarray, period: float) -> np.ndarray:
        """Distance to the nearest edge of stripes, positive in every second one."""
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


# ------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Light:
    """direction: towards the light, (x, y, z), z up from the table. ambient, diffuse, gloss: how much of each."""

    direction: np.ndarray
    colour: np.ndarray
    ambient: float
    diffuse: float
    gloss: float


def _light(rng: np.random.Generator) -> Light:
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
    """(H,W) in about [-1,1], smooth, with `cells` cells along the longer side. size: (width, height)."""
    rough = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC) * 0.6


def _ground(rng: np.random.Generator, size: tuple[int, int], light: Light) -> np.ndarray:
    """(H,W,3) in [0,1]: table or cloth; two muted colours, a texture, a gradient away from the light."""
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


def _pose(rng: np.random.Generator, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Homography (3,3) from the object's plane to pixels: rotation, size, one direction a little shorter, and vanishing
    lines a little tilted."""
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


def _drawn(
    identity: Identity, pose: np.ndarray, size: tuple[int, int], light: Light
) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
    """Rows and columns of the object, its colours (h,w,3) there and its coverage (h,w). None: it is outside."""
    square = REACH * np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]).T
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
    to_map = (MAP / (2 * REACH), MAP / 2 - 0.5)
    layers = cv2.remap(
        shape_map(identity.shape), u * to_map[0] + to_map[1], v * to_map[0] + to_map[1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(-1.0, 0.0, 0.0),
    )  # fmt: skip
    pixel = 1.0 / np.sqrt(abs(np.linalg.det(pose[:2, :2])))
    coverage = np.clip(layers[..., 0] / pixel + 0.5, 0.0, 1.0)
    share = pattern_share(identity.pattern, u, v, pixel)[..., None]
    albedo = np.array(identity.colour) + share * np.subtract(identity.second, identity.colour)
    turned = layers[..., 1:] @ np.linalg.inv(pose[:2, :2] * pixel).astype(np.float32)  # slopes, from object to picture
    normal = np.concatenate([-turned, np.ones_like(turned[..., :1])], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    facing = np.clip(normal @ light.direction, 0.0, 1.0)
    half = light.direction + np.array([0.0, 0.0, 1.0])
    shine = np.clip(normal @ (half / np.linalg.norm(half)), 0.0, 1.0) ** 30
    shaded = albedo * (light.ambient + light.diffuse * facing)[..., None] * light.colour
    return slice(y0, y1), slice(x0, x1), shaded + light.gloss * shine[..., None], coverage


def scene(
    seed: int | tuple[int, ...],
    size: tuple[int, int] = (160, 120),
    objects: tuple[int, int] = (2, 3),
    held_out: bool = False,
) -> tuple[np.ndarray, list[Object]]:
    """A scene, a function of its arguments. size: (width, height) in pixels; objects: least and most of them; held_out:
    whether its objects are of the held-out pairs of shape and pattern, or all of the others.

    -> picture (H,W,3) uint8, and the objects of which enough is seen, from the lowest to the topmost."""
    rng = np.random.default_rng(seed)
    light = _light(rng)
    image = _ground(rng, size, light)
    owner = np.full(image.shape[:2], -1)  # whose pixel it is
    placed: list[tuple[Identity, float, float, float]] = []
    centres: list[np.ndarray] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        radius = min(size) * rng.uniform(0.26, 0.42)
        for _ in range(20):  # objects may overlap, but not lie on one another
            centre = rng.uniform((radius * 0.8, radius * 0.8), np.subtract(size, radius * 0.8))
            if all(np.linalg.norm(centre - other) > 1.15 * radius for other in centres):
                break
        else:
            continue
        centres.append(centre)
        identity, angle = draw_identity(rng, held_out), rng.uniform(-MOST_TURNED, MOST_TURNED)
        drawn = _drawn(identity, _pose(rng, centre, radius, angle), size, light)
        if drawn is None:
            continue
        rows, columns, colours, coverage = drawn
        _cast_shadow(image, rows, columns, coverage, light, radius)
        view = image[rows, columns]
        view += coverage[..., None] * (colours - view)
        owner[rows, columns][coverage > 0.5] = len(placed)
        placed.append((identity, float((coverage > 0.5).sum()), float(np.degrees(angle)), radius))
    image += rng.normal(0, 0.008, image.shape)
    found = []
    for i, (identity, area, angle, radius) in enumerate(placed):
        ys, xs = np.nonzero(owner == i)
        whole = np.pi * radius**2 * 0.1  # so much at least, or it is a sliver at the border
        if area > whole and len(ys) >= SHOWN * area:
            box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            found.append(Object(identity, box, len(ys) / area, angle, radius))
    return (np.clip(image, 0.0, 1.0) * 255.0).round().astype(np.uint8), found


def _cast_shadow(
    image: np.ndarray, rows: slice, columns: slice, coverage: np.ndarray, light: Light, radius: float
) -> None:
    """Darkens what lies under the object and away from the light, in place."""
    height, width = image.shape[:2]
    away = -light.direction[:2] / light.direction[2] * radius * 0.28
    margin = int(np.ceil(radius * 0.5))
    top, left = max(rows.start - margin, 0), max(columns.start - margin, 0)
    bottom, right = min(rows.stop + margin, height), min(columns.stop + margin, width)
    shift = np.float32([[1, 0, columns.start - left + away[0]], [0, 1, rows.start - top + away[1]]])
    shadow = cv2.warpAffine(coverage.astype(np.float32), shift, (right - left, bottom - top))
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(0.8, radius * 0.06))
    image[top:bottom, left:right] *= 1.0 - 0.55 * shadow[..., None]
