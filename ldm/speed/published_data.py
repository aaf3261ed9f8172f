"""The published procedure of preparing and loading training data, written plainly, to measure ours against."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from ldm.conventions import CLIP_MEAN, CLIP_STD
from ldm.data.masks import distinct
from ldm.data.reference import load_augmentation

Box = tuple[int, int, int, int]  # x0, y0, x1, y1
Point = tuple[float, float]


def prepare_as_published(root: Path) -> None:
    """For each folder of pictures: reads the CSV, finds each picture's rows, decodes it for its size, writes its boxes.

    Needs pandas."""
    import pandas

    for folder in tqdm(sorted((root / "images").iterdir()), desc="published read_bbox", unit="folder"):
        rows = pandas.read_csv(root / "annotations/oidv6-train-annotations-bbox.csv")
        groups = rows.groupby("ImageID")
        target = root / "bbox" / folder.name
        target.mkdir(parents=True)
        for path in sorted(folder.iterdir()):
            if path.stem not in groups.groups:
                continue
            found = groups.get_group(path.stem)
            height, width = cv2.imread(str(path)).shape[:2]
            lines = []
            for x0, x1, y0, y1 in found[["XMin", "XMax", "YMin", "YMax"]].values.tolist():
                if 0.02 <= (x1 - x0) * (y1 - y0) <= 0.8:
                    lines.append(f"{x0 * width} {y0 * height} {x1 * width} {y1 * height}\n")
            if lines:
                (target / f"{path.stem}.txt").write_text("".join(lines))


class PublishedDataset:
    """Decodes each picture twice, keeps everything in float at the picture's size, and resizes last."""

    def __init__(self, root: Path, size: int):
        self.files, self.root, self.size = sorted((root / "bbox").rglob("*.txt")), root, size
        self.augmentation = load_augmentation(True)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        file = self.files[i]
        path = self.root / "images" / file.parent.name / f"{file.stem}.jpg"
        boxes = [[int(float(number)) for number in line.split()] for line in file.read_text().splitlines()]
        x0, y0, x1, y1 = random.choice(boxes)
        box = (x0, y0, x1, y1)
        picture = Image.open(path).convert("RGB")
        width, height = picture.size
        reference = self._reference(path, box, width, height)
        image = torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy()).float().div(255).sub(0.5).div(0.5)
        grown = grow_randomly(box, width, height)
        mask = draw_blob(box, grown, width, height) if random.random() < 0.5 else draw_rectangle(grown, width, height)
        image, mask = crop_to_square(image, mask, grown)
        image, mask = (F.interpolate(part[None], (self.size, self.size), mode="bilinear")[0] for part in (image, mask))
        return {"GT": image, "inpaint_image": image * mask, "inpaint_mask": mask, "ref_imgs": reference}

    def _reference(self, path: Path, box: Box, width: int, height: int) -> Tensor:
        x0, y0, x1, y1 = box
        pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        region = pixels[max(0, y0 - 10) : min(height, y1 + 10), max(0, x0 - 10) : min(width, x1 + 10)]
        region = self.augmentation(cv2.resize(region, (224, 224)), np.random.default_rng())
        reference = torch.from_numpy(region.transpose(2, 0, 1).copy()).float().div(255)
        return (reference - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def grow_randomly(box: Box, width: int, height: int) -> Box:
    """Moves each edge outwards by up to 40% of the space there."""
    x0, y0, x1, y1 = box
    left, top = x0 - random.randint(0, int(0.4 * x0)), y0 - random.randint(0, int(0.4 * y0))
    right = x1 + random.randint(0, int(0.4 * (width - x1)))
    bottom = y1 + random.randint(0, int(0.4 * (height - y1)))
    return left, top, right, bottom


def draw_blob(box: Box, grown: Box, width: int, height: int) -> Tensor:
    """A mask (1,H,W), 1 = keep: a closed Bezier curve through the box's corners, pulled to the grown box."""
    (x0, y0, x1, y1), (left, top, right, bottom) = box, grown
    drawn = Image.new("RGB", (width, height), (255, 255, 255))
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    pulls = [((x0 + x1) / 2, top), (right, (y0 + y1) / 2), ((x0 + x1) / 2, bottom), (left, (y0 + y1) / 2)]
    points = []
    for a, pull, b in zip(corners, pulls, corners[1:], strict=False):
        arc = [bezier(a, pull, b, i * 0.05) for i in range(1, 19)]
        points += [(x + random.randint(-5, 5), y + random.randint(-5, 5)) for x, y in distinct(np.array(arc))]
    ImageDraw.Draw(drawn).polygon(points, fill=(0, 0, 0))
    return torch.from_numpy(np.array(drawn).transpose(2, 0, 1).copy()).float().div(255)[0:1]


def bezier(a: Point, pull: Point, b: Point, t: float) -> list[float]:
    """The point at t (0 to 1) of the quadratic Bezier curve from a to b."""
    return [(1 - t) ** 2 * p + 2 * t * (1 - t) * q + t * t * r for p, q, r in zip(a, pull, b, strict=True)]


def draw_rectangle(box: Box, width: int, height: int) -> Tensor:
    """A mask (1,H,W), 1 = keep."""
    left, top, right, bottom = box
    mask = np.zeros((height, width))
    mask[top:bottom, left:right] = 1
    return 1 - torch.from_numpy(mask)[None].float()


def crop_to_square(image: Tensor, mask: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """A random square around the box, of a picture wider than high; the whole picture if no square holds the box."""
    left, top, right, bottom = box
    height, width = image.shape[-2:]
    first, last = max(0, right - height), min(left, width - height)
    if first >= last:
        return image, mask
    x = random.randint(first, last)
    free = random.randint(0, int(0.6 * min(top, left - x, x + height - right, height - bottom)))
    rows, columns = slice(free, height - free), slice(x + free, x + height - free)
    return image[:, rows, columns], mask[:, rows, columns]
