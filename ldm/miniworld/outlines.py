"""How well objects are found by a click or a box: in scenes of the small world, whose true outlines are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ldm.data.masks import Box
from ldm.miniworld.scene import outlined_scene
from ldm.miniworld.worlds import SPLIT_STREAMS
from ldm.miniworld.write import SCENE_SIZE
from ldm.segmentation.objects import Point, Prompt, find_object
from ldm.util import UserError

LOOSE = 0.15  # of the object's sides, on each side


def iou(mask: Any, outline: np.ndarray) -> float:
    """Intersection over union. mask: L, 255 = the object; outline (H,W): bool."""
    found = np.asarray(mask) > 127
    return float((found & outline).sum() / max(1, (found | outline).sum()))


def centre(outline: np.ndarray) -> Point:
    """(x, y) of the point that is farthest from the object's edge."""
    depth = cv2.distanceTransform(np.pad(outline, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def loose(box: Box, size: tuple[int, int]) -> Box:
    """The box, larger by LOOSE on each side, inside the picture of this (width, height)."""
    x0, y0, x1, y1 = box
    dx, dy = round(LOOSE * (x1 - x0)), round(LOOSE * (y1 - y0))
    return max(0, x0 - dx), max(0, y0 - dy), min(size[0], x1 + dx), min(size[1], y1 + dy)


PROMPTS: dict[str, Callable[[Box, np.ndarray], Prompt]] = {
    "true box": lambda box, outline: Prompt(box),
    "loose box": lambda box, outline: Prompt(loose(box, outline.shape[::-1])),
    "one click": lambda box, outline: Prompt(clicks=(centre(outline),)),
}


def measure(scenes: int, segment: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """The IoU of every visible object of this many test scenes, by each of PROMPTS; 0 where none is found."""
    objects = [
        (Image.fromarray(picture), each.box, outline)
        for number in range(scenes)
        for picture, found in [outlined_scene((0, SPLIT_STREAMS["test"], number), SCENE_SIZE)]
        for each, outline in found
    ]
    for name, prompt_for in PROMPTS.items():
        scores = []
        for picture, box, outline in objects:
            try:
                scores.append(iou(find_object(picture, prompt_for(box, outline), segment), outline))
            except UserError:
                scores.append(0.0)
        yield name, np.array(scores)
