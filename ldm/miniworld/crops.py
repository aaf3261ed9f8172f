"""Objects of the small world, cut out of its scenes, with what they are: for its CLIP and its oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.conventions import pixels_to_tensor, reference_to_tensor
from ldm.data.masks import Box, reference_region
from ldm.data.reference import load_augmentation, resize_reference
from ldm.images import PictureFile
from ldm.miniworld.scene import PATTERNS, SHAPES, caption_tokens, pattern_caption, shape_caption
from ldm.util import UserError

ATTRIBUTES = "attributes.json"  # of a benchmark
SIDE = 40  # pixels of a region as the oracle sees it


def read_objects(dataset_dir: str | Path, split: str) -> list[dict[str, Any]]:
    """The objects of a split as make_miniworld.py wrote them: image, box, shape, pattern, colour, second, caption, ...
    Raises UserError: no small world."""
    path = Path(dataset_dir) / f"annotations/{split}-objects.jsonl"
    try:
        objects = [json.loads(line) for line in path.read_text().splitlines()]
        for thing in objects:
            identity_numbers(thing), caption_tokens(thing["caption"]), thing["image"], thing["box"]
        return objects
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with scripts/make_miniworld.py") from error


def lab(colour: np.ndarray) -> np.ndarray:
    """(n,3) sRGB in [0,1] -> (n,3) CIE L*a*b* over 100, in which a distance of 0.01 is a Delta E of 1 (CIE 1976)."""
    return cv2.cvtColor(np.float32(colour)[None], cv2.COLOR_RGB2Lab)[0] / 100


def identity_numbers(thing: Mapping[str, Any]) -> dict[str, Any]:
    """shape and pattern by number; colours (2,3) float32, Lab over 100. thing: attributes as make_miniworld.py wrote
    them. Raises KeyError, ValueError, TypeError for others."""
    colours = np.array([thing["colour"], thing["second"]], dtype=np.float32)
    if colours.shape != (2, 3) or not np.isfinite(colours).all():
        raise ValueError("a colour is no three numbers")
    return {
        "shape": SHAPES.index(thing["shape"]),
        "pattern": PATTERNS.index(thing["pattern"]),
        "colours": lab(colours),
    }


def bench_identities(bench: Path) -> dict[str, dict[str, Any]]:
    """Id -> what a case's reference is, in the small world's benchmark; nothing for another. Raises UserError."""
    path = bench / ATTRIBUTES
    if not path.exists():
        return {}
    try:
        return {name: identity_numbers(case["reference"]) for name, case in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the benchmark again, or remove the file") from error


class _Crops(Dataset):
    """A function of (seed, epoch, i), as OpenImageDataset is. augment: by chance, for training."""

    def __init__(self, state: str, dataset_dir: str = "dataset/miniworld", augment: bool = False, seed: int = 0):
        self.root, self.augment, self.seed = Path(dataset_dir), augment, seed
        self.objects = read_objects(dataset_dir, state)

    def __len__(self) -> int:
        return len(self.objects)

    def path(self, i: int) -> Path:
        return self.root / self.objects[i]["image"]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = key if isinstance(key, tuple) else (0, key)
        thing = self.objects[i]
        picture = PictureFile(self.path(i)).pixels(1)
        entry = self.entry(picture, tuple(thing["box"]), np.random.default_rng((self.seed, epoch, i)))
        texts = (thing["caption"], shape_caption(thing["shape"]), pattern_caption(thing["pattern"]))
        return {**entry, "caption": np.stack([caption_tokens(text) for text in texts]), **identity_numbers(thing)}

    def entry(self, picture: np.ndarray, box: Box, rng: np.random.Generator) -> dict[str, Tensor]:
        raise NotImplementedError


class ReferenceCrops(_Crops):
    """`image` (3,image_size,image_size), CLIP-normalised: references as training and editing see them. `caption`
    (3,CAPTION_LENGTH): the tokens of all there is to say, of the shape alone, and of the pattern alone.

    augment: a margin around the object, and the recipe's own augmentation."""

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

    def entry(self, picture: np.ndarray, box: Box, rng: np.random.Generator) -> dict[str, Tensor]:
        size = picture.shape[1::-1]
        region = reference_region(_moved(box, size, rng, 0.1, 0.3) if self.augment else box, size)
        pixels = resize_reference(_cut(picture, region))
        if self.augmentation:
            pixels = self.augmentation(pixels, rng)
        return {"image": reference_to_tensor(Image.fromarray(pixels), self.image_size)}


class RegionCrops(_Crops):
    """`image` (3,SIDE,SIDE) in [0,1]: an object in its box, as an edited region is cut out for the oracle.

    least: pixels of the longer side; the scene is reduced by chance down to that, since edits are small. augment: the
    box a little off, and mirrored, too."""

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

    def entry(self, picture: np.ndarray, box: Box, rng: np.random.Generator) -> dict[str, Tensor]:
        if self.augment:
            box = _moved(box, picture.shape[1::-1], rng, 0.08, 0.12)
        pixels = _cut(picture, box)
        longer = max(pixels.shape[:2])
        scale = min(1.0, rng.uniform(self.least, 56) / longer)
        side = tuple(max(8, round(length * scale)) for length in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, side, interpolation=cv2.INTER_LINEAR)
        if self.augment:
            pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        return {"image": region_to_tensor(np.ascontiguousarray(pixels))}


def region_to_tensor(pixels: np.ndarray) -> Tensor:
    """(h,w,3) uint8 -> (3,SIDE,SIDE) in [0,1], squashed, as the oracle takes it."""
    return pixels_to_tensor(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR))


def _moved(box: Box, size: tuple[int, int], rng: np.random.Generator, inward: float, outward: float) -> Box:
    """The box with each edge moved by chance, by at most these shares of its length; in the picture."""
    (x0, y0, x1, y1), (width, height) = box, size
    left, top, right, bottom = rng.uniform(-outward, inward, 4)
    w, h = x1 - x0, y1 - y0
    return (
        max(0, round(x0 + left * w)),
        max(0, round(y0 + top * h)),
        min(width, round(x1 - right * w)),
        min(height, round(y1 - bottom * h)),
    )


def _cut(picture: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return picture[y0:y1, x0:x1]
