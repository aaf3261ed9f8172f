"""Objects cut out of the small world's scenes, with their captions and labels: training data of its CLIP and oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.conventions import pixels_to_tensor, reference_to_tensor
from ldm.data.masks import Box, reference_region
from ldm.data.reference import load_augmentation, resize_reference
from ldm.images import PictureFile
from ldm.miniworld.captions import caption_tokens, pattern_caption, shape_caption
from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.shapes import SHAPES
from ldm.util import UserError

ATTRIBUTES = "attributes.json"  # in a benchmark: the identities of each case's reference and replaced object
SIDE = 40  # pixels of a region as the oracle sees it
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Labels:
    """An identity in numbers, as the oracle learns it: indices into SHAPES and PATTERNS, and colours (2,3) float32, Lab
    over 100."""

    shape: int
    pattern: int
    colours: np.ndarray


@dataclass(frozen=True)
class Annotation:
    """An annotated object of a split. image: relative to the data set's folder; caption: of shape, pattern and
    colours."""

    image: str
    box: Box
    shape: str
    pattern: str
    caption: str
    labels: Labels


def read_objects(dataset_dir: str | Path, split: str) -> list[Annotation]:
    """The objects of a split of the twelve shapes. Raises UserError: missing or damaged."""
    return read_annotations(dataset_dir, split, _annotation)


def read_annotations(dataset_dir: str | Path, split: str, parse: Callable[[Mapping[str, Any]], Parsed]) -> list[Parsed]:
    """The objects of a split, as scripts/make_miniworld.py wrote them. parse: attributes -> an object; it raises
    ValueError, KeyError or TypeError for others than it expects. Raises UserError: missing or damaged."""
    path = Path(dataset_dir) / f"annotations/{split}-objects.jsonl"
    try:
        return [parse(json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): make it with scripts/make_miniworld.py") from error


def _annotation(attributes: Mapping[str, Any]) -> Annotation:
    caption_tokens(attributes["caption"])  # raises ValueError for unknown words
    return Annotation(
        image=attributes["image"],
        box=tuple(attributes["box"]),
        shape=attributes["shape"],
        pattern=attributes["pattern"],
        caption=attributes["caption"],
        labels=labels_of(attributes),
    )


def lab(colours: np.ndarray) -> np.ndarray:
    """(n,3) sRGB in [0,1] -> (n,3) CIE L*a*b* over 100, in which a distance of 0.01 is a Delta E of 1 (CIE 1976)."""
    return cv2.cvtColor(np.float32(colours)[None], cv2.COLOR_RGB2Lab)[0] / 100


def labels_of(attributes: Mapping[str, Any]) -> Labels:
    """attributes: shape, pattern, colour, second, as scripts/make_miniworld.py wrote them. Raises KeyError, ValueError
    or TypeError if one is missing or has another type."""
    colours = np.array([attributes["colour"], attributes["second"]], dtype=np.float32)
    if colours.shape != (2, 3) or not np.isfinite(colours).all():
        raise ValueError("a colour is not three numbers")
    return Labels(SHAPES.index(attributes["shape"]), PATTERNS.index(attributes["pattern"]), lab(colours))


def bench_labels(bench: Path) -> dict[str, Labels]:
    """Case -> labels of its reference; empty for benchmarks other than the small world's. Raises UserError: a damaged
    file."""
    path = bench / ATTRIBUTES
    if not path.exists():
        return {}
    try:
        return {name: labels_of(case["reference"]) for name, case in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): make the benchmark again, or remove the file") from error


class _Crops(Dataset):
    """`dataset[epoch, i]` is a function of (seed, epoch, i), like OpenImageDataset's. augment: random changes, for
    training."""

    def __init__(self, state: str, dataset_dir: str = "dataset/miniworld", augment: bool = False, seed: int = 0):
        self.root, self.augment, self.seed = Path(dataset_dir), augment, seed
        self.objects = read_objects(dataset_dir, state)

    def __len__(self) -> int:
        return len(self.objects)

    def path(self, i: int) -> Path:
        """The file of the i-th object's scene."""
        return self.root / self.objects[i].image

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = key if isinstance(key, tuple) else (0, key)
        thing = self.objects[i]
        picture = PictureFile(self.path(i)).pixels(1)
        texts = (thing.caption, shape_caption(thing.shape), pattern_caption(thing.pattern))
        return {
            "image": self.image(picture, thing.box, np.random.default_rng((self.seed, epoch, i))),
            "caption": np.stack([caption_tokens(text) for text in texts]),
            **vars(thing.labels),
        }

    def image(self, picture: np.ndarray, box: Box, rng: np.random.Generator) -> Tensor:
        """A scene (H,W,3) uint8 and an object's box in it -> what a network sees."""
        raise NotImplementedError


class ReferenceCrops(_Crops):
    """`image` (3,image_size,image_size), CLIP-normalised: references as training and editing see them. `caption`
    (3,CAPTION_LENGTH): tokens of the full caption, of the shape alone, and of the pattern alone.

    augment: a random margin around the object, and the recipe's own augmentation of references."""

    def __init__(
        self,
        state: str,
        dataset_dir: str = "dataset/miniworld",
        augment: bool = False,
        image_size: int = 224,
        seed: int = 0,
    ):
        super().__init__(state, dataset_dir, augment, seed)
        self.image_size = image_size
        self.augmentation = load_augmentation(augment)

    def image(self, picture: np.ndarray, box: Box, rng: np.random.Generator) -> Tensor:
        size = picture.shape[1::-1]
        region = reference_region(moved_box(box, size, rng, 0.1, 0.3) if self.augment else box, size)
        pixels = resize_reference(cut_box(picture, region))
        if self.augmentation:
            pixels = self.augmentation(pixels, rng)
        return reference_to_tensor(Image.fromarray(pixels), self.image_size)


class RegionCrops(_Crops):
    """`image` (3,SIDE,SIDE) in [0,1]: an object in its box, cut out like an edited region for the oracle.

    The object is reduced until its longer side has a random length, since regions of edits are small. least: minimum of
    that length in pixels; the maximum is 56. augment: the box is also moved a little, and half of the crops
    mirrored."""

    def __init__(
        self,
        state: str,
        dataset_dir: str = "dataset/miniworld",
        augment: bool = False,
        least: int = 22,
        seed: int = 0,
    ):
        super().__init__(state, dataset_dir, augment, seed)
        self.least = least

    def image(self, picture: np.ndarray, box: Box, rng: np.random.Generator) -> Tensor:
        if self.augment:
            box = moved_box(box, picture.shape[1::-1], rng, 0.08, 0.12)
        pixels = reduced(cut_box(picture, box), rng.uniform(self.least, 56))
        if self.augment:
            pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        return region_to_tensor(np.ascontiguousarray(pixels))


def region_to_tensor(pixels: np.ndarray, side: int = SIDE) -> Tensor:
    """(h,w,3) uint8 -> (3,side,side) in [0,1], squashed: the oracle's input."""
    return pixels_to_tensor(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR))


def reduced(pixels: np.ndarray, length: float) -> np.ndarray:
    """(h,w,3) uint8, made smaller until its longer side is at most `length`."""
    scale = min(1.0, length / max(pixels.shape[:2]))
    side = tuple(max(8, round(each * scale)) for each in pixels.shape[1::-1])
    return cv2.resize(pixels, side, interpolation=cv2.INTER_LINEAR)


def moved_box(box: Box, size: tuple[int, int], rng: np.random.Generator, inward: float, outward: float) -> Box:
    """The box with each edge moved at random, by at most these shares of its length, and clipped to the picture."""
    (x0, y0, x1, y1), (width, height) = box, size
    left, top, right, bottom = rng.uniform(-outward, inward, 4)
    w, h = x1 - x0, y1 - y0
    return (
        max(0, round(x0 + left * w)),
        max(0, round(y0 + top * h)),
        min(width, round(x1 - right * w)),
        min(height, round(y1 - bottom * h)),
    )


def cut_box(picture: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return picture[y0:y1, x0:x1]
