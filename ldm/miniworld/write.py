"""The small world as files: a data set in the layout of OpenImages, and a benchmark in the layout of COCOEE.

<root>/annotations/*.csv                   in OpenImages' format; the labels are shapes and individuals' kinds of
                                           texture. With individuals, a further column `object` says which object it is
                   <split>-objects.jsonl   a line per annotated object: picture, box, identity, caption, pose
       images/{train_0 ... train_f,validation,test,pretraining}/<id>.jpg
                                           pretraining also shows held-out identities; it trains the CLIP and the oracle
       masks/.../<id>.png                  where each annotated object is (ldm/data/object_masks.py)
<bench>/GT_3500, Mask_bbox_3500, Ref_3500, id_list.npy
        attributes.json                    the identities of each case's reference and replaced object, or in its place
        individuals.json                   the same of individuals, with the look-alikes of each reference, and
        gallery/<object>.jpg               views of each individual (ldm.miniworld.gallery)
        perfect/<case>.png                 the photos with the references' objects drawn in place of the replaced ones
        test2017_square/                   other scenes, cut like the benchmark's: the real pictures of FID
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

from ldm.data.bench.cocoee import case_id, case_path, result_path
from ldm.data.bench.make import box_mask, square_around
from ldm.data.bench.squares import PICTURES_PER_TASK, central_square, cut, cut_square, save_png
from ldm.data.masks import reference_region
from ldm.data.object_masks import mask_path
from ldm.data.prepare.open_images import ANNOTATION_FILES
from ldm.data.processes import worker_pool
from ldm.files import staging
from ldm.miniworld.captions import caption
from ldm.miniworld.gallery import GALLERY, write_views
from ldm.miniworld.identity import Identity
from ldm.miniworld.scene import Look, Object, outlined_scene, scene
from ldm.miniworld.worlds import (
    DEFAULT_WORLD,
    REAL_STREAM,
    REFERENCE_STREAM,
    SOURCE_STREAM,
    SPLIT_STREAMS,
    Draw,
    Individuals,
    World,
)
from ldm.util import UserError

CSV_COLUMNS = (
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    *("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"),
)
JPEG_QUALITY = 95
SCENE_SIZE = (192, 144)  # width and height, px
PERFECT = "perfect"  # a benchmark's folder
CASES, REAL_PICTURES, SIDE = 600, 2000, 128  # the benchmark's numbers of pictures, and their side, px


def label(category: str) -> str:
    """A category's label in the data set."""
    return f"/m/mini_{category}"


def folder_of(split: str, number: int) -> str:
    """OpenImages keeps its training pictures in sixteen folders."""
    return f"train_{number % 16:x}" if split == "train" else split


def write_world(
    root: Path, counts: dict[str, int], size: tuple[int, int], seed: int, world: World = DEFAULT_WORLD
) -> dict[str, int]:
    """Writes the data set. counts: scenes by split; size: (width, height) of a scene. -> annotated objects by split.

    Raises UserError: root exists, or cannot be written to."""
    found = {}
    with _new_folder(root) as place, worker_pool("pictures", PICTURES_PER_TASK) as parallel_map:
        (place / "annotations").mkdir(parents=True)
        with open(place / "annotations/class-descriptions-boxable.csv", "w", newline="") as file:
            csv.writer(file).writerows((label(each), each.capitalize()) for each in world.categories)
        for split, count in counts.items():
            for folder in {folder_of(split, number) for number in range(min(count, 16))}:
                for kind in ("images", "masks"):
                    (place / kind / folder).mkdir(parents=True)
            make = partial(_write_scene, place=place, split=split, count=count, size=size, seed=seed, world=world)
            pictures = tqdm(parallel_map(make, range(count)), desc=split, total=count, unit="scene")
            found[split] = _annotate(place / "annotations", split, size, pictures, world)
    return found


def _write_scene(
    number: int, place: Path, split: str, count: int, size: tuple[int, int], seed: int, world: World
) -> tuple[str, str, list[Object]]:
    """Writes a scene and its objects' mask. -> its id, its path in the data set, and its objects."""
    draw = world.split(split, count, number)
    pixels, outlined = outlined_scene((seed, SPLIT_STREAMS[split], number), size, draw=draw)
    name = f"{SPLIT_STREAMS[split]:x}{number:015x}"
    path = f"images/{folder_of(split, number)}/{name}.jpg"
    numbers = np.zeros(pixels.shape[:2], np.uint8)
    for i, (_, visible) in enumerate(outlined):
        numbers[visible] = i + 1
    Image.fromarray(numbers).save(mask_path(place / path))
    (place / path).write_bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), JPEG_QUALITY, colorsubsampling="444")
    )
    return name, path, [each for each, _ in outlined]


def _annotate(
    folder: Path, split: str, size: tuple[int, int], pictures: Iterable[tuple[str, str, list[Object]]], world: World
) -> int:
    """Writes a split's annotations. pictures: id, path and objects of each. -> annotated objects."""
    count = 0
    with (
        open(folder / ANNOTATION_FILES.get(split, f"{split}-annotations-bbox.csv"), "w", newline="") as boxes,
        open(folder / f"{split}-objects.jsonl", "w") as attributes,
    ):
        rows = csv.writer(boxes)
        rows.writerow([*CSV_COLUMNS, *world.columns])
        for name, path, objects in pictures:
            for thing in objects:
                x0, y0, x1, y1 = (edge / length for edge, length in zip(thing.box, (*size, *size), strict=True))
                border = int(min(x0, y0) <= 0 or max(x1, y1) >= 1)
                numbers = [f"{edge:.6f}" for edge in (x0, x1, y0, y1)]
                hidden = int(thing.seen < 0.98)
                row = [name, "xclick", label(thing.identity.category), 1, *numbers, hidden, border, 0, 0, 0]
                rows.writerow([*row, *(getattr(thing.identity, column) for column in world.columns)])
                attributes.write(json.dumps({"image": path, **attributes_of(thing)}) + "\n")
                count += 1
    return count


def attributes_of(thing: Object) -> dict[str, Any]:
    """An object as JSON: shape, pattern, colour, second and caption, or an individual's object, kind, colours and seed;
    box, seen, angle, radius."""
    fields, look = asdict(thing), thing.identity
    described = {"caption": caption(look)} if isinstance(look, Identity) else {}
    return {**fields.pop("identity"), **described, **fields}


def write_bench(
    bench: Path,
    count: int = CASES,
    real: int = REAL_PICTURES,
    side: int = SIDE,
    size: tuple[int, int] = SCENE_SIZE,
    seed: int = 0,
    world: World = DEFAULT_WORLD,
) -> None:
    """Writes the benchmark: `count` cases and `real` other scenes, each side x side pixels, cut from scenes of `size`.

    A case replaces an object of one scene by an object of another scene, which has another pose and light and an
    identity that training never shows. Raises UserError: bench exists, or cannot be written to."""
    with _new_folder(bench) as place, worker_pool("pictures", PICTURES_PER_TASK) as parallel_map:
        for folder in ("GT_3500", "Mask_bbox_3500", "Ref_3500", PERFECT, "test2017_square"):
            (place / folder).mkdir(parents=True)
        make = partial(_write_case, place=place, side=side, size=size, seed=seed, world=world, count=count)
        attributes = dict(tqdm(parallel_map(make, range(count)), desc="cases", total=count, unit="case"))
        (place / world.attributes).write_text(json.dumps(attributes, indent=1) + "\n")
        np.save(place / "id_list.npy", np.arange(count, dtype=np.int64))
        draw = world.bench(count, REAL_STREAM)
        make = partial(_write_real, place=place, side=side, size=size, seed=seed, draw=draw)
        for _ in tqdm(parallel_map(make, range(real)), desc="real pictures", total=real, unit="scene"):
            pass
        if isinstance(world, Individuals):
            (place / GALLERY).mkdir()
            everyone = world.population(count).everyone()
            views = parallel_map(partial(write_views, place=place, size=size, seed=seed), everyone)
            for _ in tqdm(views, desc="gallery", total=len(everyone), unit="individual"):
                pass


def _write_case(
    number: int, place: Path, side: int, size: tuple[int, int], seed: int, world: World, count: int
) -> tuple[str, dict[str, Any]]:
    """Writes a case's photo, mask, reference and perfect edit. -> its id, and the attributes of its objects."""
    rng = np.random.default_rng((seed, SOURCE_STREAM, number))
    sources, others = world.bench(count, SOURCE_STREAM), world.bench(count, REFERENCE_STREAM)
    attempt = 0
    while True:  # until both scenes have a suitable object
        pixels, objects = scene((seed, SOURCE_STREAM, number, attempt), size, draw=sources)
        other, found = scene((seed, REFERENCE_STREAM, number, attempt), size, draw=others)
        fitting = [thing for thing in objects if square_around(thing.box, size)]
        shown = [thing.identity for thing in objects]
        references = [thing for thing in found if thing.seen >= world.least_seen and thing.identity not in shown]
        if fitting and references:
            break
        attempt += 1
    thing, reference = (each[rng.integers(len(each))] for each in (fitting, references))
    square, name = square_around(thing.box, size), case_id(number)
    save_png(cut_square(pixels, square, side), case_path(place, "GT_3500", name))
    save_png(Image.fromarray(box_mask(thing.box, square, side)), case_path(place, "Mask_bbox_3500", name))
    save_png(cut(other, reference_region(reference.box, size)), case_path(place, "Ref_3500", name))
    exchanged = _exchanging(sources, thing.identity, reference.identity)
    perfect, _ = scene((seed, SOURCE_STREAM, number, attempt), size, draw=exchanged)
    save_png(cut_square(perfect, square, side), result_path(place / PERFECT, name))
    attributes: dict[str, Any] = {"reference": attributes_of(reference), "replaced": attributes_of(thing)}
    if isinstance(world, Individuals):
        attributes["gallery"] = [each.object for each in world.population(count).lookalikes(reference.identity)]
    return name, attributes


def _exchanging(draw: Draw, old: Look, new: Look) -> Draw:
    """Draws what `draw` does, but `new` in place of `old`: in the same pose, and all else of the scene the same."""

    def exchanged(rng: np.random.Generator) -> Look:
        look = draw(rng)
        return new if look == old else look

    return exchanged


def _write_real(number: int, place: Path, side: int, size: tuple[int, int], seed: int, draw: Draw) -> None:
    """Writes one of the real pictures."""
    pixels, _ = scene((seed, REAL_STREAM, number), size, draw=draw)
    save_png(cut_square(pixels, central_square(size), side), place / f"test2017_square/{number:06}.png")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, which becomes `folder` in one move at the end. Raises UserError: it exists."""
    if folder.exists():
        raise UserError(f"{folder} already exists: remove it, or name other folders with --dataset_dir and --bench")
    with staging(folder.absolute().parent) as temporary:
        (temporary / folder.name).mkdir()
        yield temporary / folder.name
