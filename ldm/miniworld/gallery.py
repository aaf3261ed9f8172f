"""The gallery of a benchmark of individuals: views of each, in which the recogniser looks up what a region shows.

A view is squashed to the VIEW_SIDE x VIEW_SIDE pixels that the recogniser sees."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from ldm.miniworld.families import VIEW_SIDE
from ldm.miniworld.individuals import Individual
from ldm.miniworld.scene import scene
from ldm.miniworld.worlds import GALLERY_STREAM, Individuals
from ldm.util import UserError

GALLERY = "gallery"  # folder of a benchmark: a picture per individual, its views side by side
VIEWS = 4  # each of another scene, in which the individual is alone


def write_views(individual: Individual, place: Path, size: tuple[int, int], seed: int) -> None:
    """Writes the views of an individual to a benchmark. size: (width, height) of their scenes."""
    views: list[np.ndarray] = []
    attempt = 0
    while len(views) < VIEWS:
        number = (seed, GALLERY_STREAM, individual.seed[-1], attempt)
        pixels, objects = scene(number, size, (1, 1), lambda _: individual)
        attempt += 1
        for x0, y0, x1, y1 in (each.box for each in objects):
            if x0 > 0 and y0 > 0 and x1 < size[0] and y1 < size[1]:  # all of it is in the picture
                views.append(cv2.resize(pixels[y0:y1, x0:x1], (VIEW_SIDE, VIEW_SIDE), interpolation=cv2.INTER_AREA))
    picture = simplejpeg.encode_jpeg(np.ascontiguousarray(np.concatenate(views, axis=1)), 95, colorsubsampling="444")
    (place / GALLERY / f"{individual.object}.jpg").write_bytes(picture)


def read_views(bench: Path, name: str) -> list[np.ndarray]:
    """The views (VIEW_SIDE,VIEW_SIDE,3) uint8 of an individual of a benchmark, by its name. Raises UserError: missing
    or damaged."""
    path = bench / GALLERY / f"{name}.jpg"
    try:
        picture = simplejpeg.decode_jpeg(path.read_bytes())
        return np.split(picture, picture.shape[1] // VIEW_SIDE, axis=1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): make the benchmark again") from error


def has_individuals(bench: Path) -> bool:
    """Whether a benchmark's references are individuals."""
    return (bench / Individuals.attributes).exists()


def read_lookalikes(bench: Path) -> dict[str, tuple[str, list[str]]]:
    """Case -> the name of the reference's individual, and the names of its look-alikes, itself included.
    Raises UserError: not a benchmark of individuals, or a damaged one."""
    path = bench / Individuals.attributes
    try:
        cases = json.loads(path.read_text()).items()
        found = {name: (case["reference"]["object"], list(case["gallery"])) for name, case in cases}
        if missing := [name for name, (own, gallery) in found.items() if own not in gallery]:
            raise ValueError(f"the gallery of {missing[0]} lacks the reference")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}): make the benchmark with scripts/make_miniworld.py --individuals"
        ) from error
