"""GrabCut (Rother et al. 2004) from a box and clicks: two mixtures of Gaussians, of the object's colours and of the
background's, and the cheapest outline between them, five times in turn. It needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 480  # longer side at which the outline is found, pixels
ROUNDS = 5
CONTEXT = 0.5  # of the box's sides, around it: where the background's colours are learnt
REACH = 0.18  # of the picture's shorter side: around a click, what is at first taken for the object
DOT = 0.03  # of the same: around a click, what is certain


def grab_cut(
    picture: np.ndarray,
    box: tuple[int, int, int, int] | None = None,
    clicks: Sequence[tuple[int, int]] = (),
    clicks_not: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """picture (H,W,3) uint8 RGB -> (H,W) bool, the object; empty if none is found.

    box: x0, y0, x1, y1, inside the picture, around all of the object; clicks: (x, y) on it; clicks_not: beside it."""
    height, width = picture.shape[:2]
    left, top, right, bottom = _window(box, width, height)
    crop = picture[top:bottom, left:right]
    zoom = min(1.0, SIDE / max(crop.shape[:2]))
    size = max(2, round(zoom * crop.shape[1])), max(2, round(zoom * crop.shape[0]))
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)

    def place(points: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
        scaled = [((x - left + 0.5) * zoom, (y - top + 0.5) * zoom) for x, y in points]
        return [(x, y) for x, y in scaled if 0 <= x < size[0] and 0 <= y < size[1]]

    on, off = place(clicks), place(clicks_not)
    inner = None if box is None else [round(zoom * side) for side in np.subtract(box, (left, top, left, top)).tolist()]
    labels = _first_labels(size, inner, on, off)
    likely = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if likely.all() or not likely.any():
        return np.zeros((height, width), bool)
    cv2.setRNGSeed(0)  # the mixtures start from k-means
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, None, background, foreground, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = _whole((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD), on)
    found &= labels != cv2.GC_BGD  # a hole that was clicked away stays open
    soft = cv2.resize(found.astype(np.float32), crop.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = soft > 0.5
    return mask


def _window(box: tuple[int, int, int, int] | None, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of the picture that is looked at."""
    if box is None:
        return 0, 0, width, height
    x0, y0, x1, y1 = box
    margin_x, margin_y = (max(4, round(CONTEXT * side)) for side in (x1 - x0, y1 - y0))
    return max(0, x0 - margin_x), max(0, y0 - margin_y), min(width, x1 + margin_x), min(height, y1 + margin_y)


def _first_labels(
    size: tuple[int, int],
    box: Sequence[int] | None,
    on: Sequence[tuple[float, float]],
    off: Sequence[tuple[float, float]],
) -> np.ndarray:
    """What GrabCut starts from (h,w): certain or likely, object or background. All in the pixels of this size."""
    ys, xs = np.mgrid[: size[1], : size[0]] + 0.5
    side = min(size)
    labels = np.full(size[::-1], cv2.GC_PR_BGD if box is None else cv2.GC_BGD, np.uint8)
    if box is not None:
        x0, y0, x1, y1 = box
        labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    else:
        for x, y in on:
            nearest = min((np.hypot(x - a, y - b) for a, b in off), default=np.inf)
            labels[np.hypot(xs - x, ys - y) <= min(REACH * side, 0.6 * nearest)] = cv2.GC_PR_FGD
    dot = max(1.5, DOT * side)
    for points, label in ((off, cv2.GC_BGD), (on, cv2.GC_FGD)):
        for x, y in points:
            labels[np.hypot(xs - x, ys - y) <= dot] = label
    return labels


def _whole(found: np.ndarray, on: Sequence[tuple[float, float]]) -> np.ndarray:
    """Without holes; of several pieces those that were clicked, or all of a tenth of the largest one's size."""
    count, pieces, statistics, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=4)
    areas = statistics[:, cv2.CC_STAT_AREA]
    kept = {pieces[int(y), int(x)] for x, y in on} - {0}
    if not kept and count > 1:
        kept = {i for i in range(1, count) if areas[i] >= areas[1:].max() / 10}
    filled = np.zeros(found.shape, np.uint8)
    outlines, _ = cv2.findContours(
        np.isin(pieces, list(kept)).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(filled, outlines, -1, 1, -1)
    return filled > 0
