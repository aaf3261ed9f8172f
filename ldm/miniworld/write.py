"""The small world as files: a data set in OpenImages' layout, and a benchmark in COCOEE's.

<root>/annotations/*.csv          as OpenImages has them; a label is a shape
                   <split>-objects.jsonl   a line per annotated object: picture, box, identity, caption, pose
       images/{train_0 ... train_f,validation,test,pretraining}/<id>.jpg    pretraining, with identities of all
                                  kinds, is for CLIP and for the classifier that tells what an edit shows
<bench>/GT_3500, Mask_bbox_3500, Ref_3500, id_list.npy     and attributes.json, the reference's identity by case
        test2017_square/          other scenes, cut as the benchmark's, for FID
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from ldm.data.bench.cocoee import case_id, case_path
from ldm.data.bench.make import box_mask, square_around
from ldm.data.bench.squares import all_cores, central_square, cut, cut_square, save_png
from ldm.data.index import SPLITS
from ldm.data.masks import reference_region
from ldm.data.prepare.formats import OPEN_IMAGES
from ldm.files import staging
from ldm.miniworld.crops import ATTRIBUTES
from ldm.miniworld.scene import SHAPES, Object, caption, scene
from ldm.util import UserError

COLUMNS = (
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    *("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"),
)
PRETRAINING = "pretraining"
SOURCES, REFERENCES, REAL = 10, 11, 12  # first number of a scene's seed, after the world's
SEEDS = {**{split: i for i, split in enumerate(SPLITS)}, PRETRAINING: 13}
QUALITY = 95  # of JPEG
SIZE = (192, 144)  # width and height of a scene, px
CASES, REAL_PICTURES, SIDE = 600, 2000, 64  # of the benchmark: how many, and the side of a picture, px


def label(shape: str) -> str:
    return f"/m/mini_{shape}"


def folder_of(split: str, number: int) -> str:
    """OpenImages spreads its training pictures over sixteen folders."""
    return f"train_{number % 16:x}" if split == "train" else split


def write_world(root: Path, counts: dict[str, int], size: tuple[int, int], seed: int) -> dict[str, int]:
    """As many scenes of each split. None shows a held-out identity but every sixth of PRETRAINING, the share that such
    pairs of shape and pattern have. size: (width, height). -> annotated objects by split.

    Raises UserError: root is there already, or cannot be written to."""
    found = {}
    with _new(root) as place, all_cores() as spread:
        (place / "annotations").mkdir(parents=True)
        with open(place / "annotations/class-descriptions-boxable.csv", "w", newline="") as file:
            csv.writer(file).writerows((label(shape), shape.capitalize()) for shape in SHAPES)
        for split, count in counts.items():
            for folder in {folder_of(split, number) for number in range(min(count, 16))}:
                (place / "images" / folder).mkdir(parents=True)
            make = partial(_picture, place=place, split=split, size=size, seed=seed)
            pictures = tqdm(spread(make, range(count)), desc=split, total=count, unit="scene")
            found[split] = _annotate(place / "annotations", split, size, pictures)
    return found


def _picture(number: int, place: Path, split: str, size: tuple[int, int], seed: int) -> tuple[str, str, list[Object]]:
    """Writes a scene. -> its id, its path and its objects."""
    pixels, objects = scene((seed, SEEDS[split], number), size, held_out=split == PRETRAINING and number % 6 == 0)
    name = f"{SEEDS[split]:x}{number:015x}"
    path = f"images/{folder_of(split, number)}/{name}.jpg"
    (place / path).write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, colorsubsampling="444"))
    return name, path, objects


def _annotate(
    folder: Path, split: str, size: tuple[int, int], pictures: Iterable[tuple[str, str, list[Object]]]
) -> int:
    count = 0
    with (
        open(folder / OPEN_IMAGES.get(split, f"{split}-annotations-bbox.csv"), "w", newline="") as boxes,
        open(folder / f"{split}-objects.jsonl", "w") as attributes,
    ):
        rows = csv.writer(boxes)
        rows.writerow(COLUMNS)
        for name, path, objects in pictures:
            for thing in objects:
                x0, y0, x1, y1 = (edge / length for edge, length in zip(thing.box, (*size, *size), strict=True))
                border = int(min(x0, y0) <= 0 or max(x1, y1) >= 1)
                numbers = [f"{edge:.6f}" for edge in (x0, x1, y0, y1)]
                hidden = int(thing.seen < 0.98)
                rows.writerow((name, "xclick", label(thing.identity.shape), 1, *numbers, hidden, border, 0, 0, 0))
                attributes.write(json.dumps({"image": path, **attributes_of(thing)}) + "\n")
                count += 1
    return count


def attributes_of(thing: Object) -> dict[str, Any]:
    """shape, pattern, colour, second, caption; box, seen, angle, radius."""
    found = asdict(thing)
    return {**found.pop("identity"), "caption": caption(thing.identity), **found}


def write_bench(
    bench: Path,
    count: int = CASES,
    real: int = REAL_PICTURES,
    side: int = SIDE,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> None:
    """Cases, side x side pixels, in which an object of one scene is to become an object of another, of an identity that
    training never shows, in another pose and light; and `real` other scenes. size: of the scenes they are cut from.

    Raises UserError: bench is there already, or cannot be written to."""
    with _new(bench) as place, all_cores() as spread:
        for folder in ("GT_3500", "Mask_bbox_3500", "Ref_3500", "test2017_square"):
            (place / folder).mkdir(parents=True)
        make = partial(_case, place=place, side=side, size=size, seed=seed)
        attributes = dict(tqdm(spread(make, range(count)), desc="cases", total=count, unit="case"))
        (place / ATTRIBUTES).write_text(json.dumps(attributes, indent=1) + "\n")
        np.save(place / "id_list.npy", np.arange(count, dtype=np.int64))
        make = partial(_real, place=place, side=side, size=size, seed=seed)
        for _ in tqdm(spread(make, range(real)), desc="real pictures", total=real, unit="scene"):
            pass


def _case(number: int, place: Path, side: int, size: tuple[int, int], seed: int) -> tuple[str, dict[str, Any]]:
    """Writes photo, mask and reference. -> id and what they show."""
    rng = np.random.default_rng((seed, SOURCES, number))
    attempt = 0
    while True:  # until there is an object in either that fits
        pixels, objects = scene((seed, SOURCES, number, attempt), size)
        others, references = scene((seed, REFERENCES, number, attempt), size, held_out=True)
        fitting = [thing for thing in objects if square_around(thing.box, size)]
        if fitting and references:
            break
        attempt += 1
    thing, reference = (found[rng.integers(len(found))] for found in (fitting, references))
    square, name = square_around(thing.box, size), case_id(number)
    save_png(cut_square(pixels, square, side), case_path(place, "GT_3500", name))
    save_png(Image.fromarray(box_mask(thing.box, square, side)), case_path(place, "Mask_bbox_3500", name))
    save_png(cut(others, reference_region(reference.box, size)), case_path(place, "Ref_3500", name))
    return name, {"reference": attributes_of(reference), "replaced": attributes_of(thing)}


def _real(number: int, place: Path, side: int, size: tuple[int, int], seed: int) -> None:
    pixels, _ = scene((seed, REAL, number), size)
    save_png(cut_square(pixels, central_square(size), side), place / f"test2017_square/{number:06}.png")


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A place to fill, which becomes `folder` in one move. Raises UserError: that is there already."""
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it, or name others with --dataset_dir and --bench")
    with staging(folder.absolute().parent) as temporary:
        (temporary / folder.name).mkdir()
        yield temporary / folder.name
