"""Prepare pictures with boxes for training: read annotations, write <dataset_dir>/bbox/<split>.parquet.

    paint-by-example prepare                        # OpenImages, laid out as in dataset/README.md
    paint-by-example prepare --format masks --images photos --annotations masks --dataset_dir dataset/mine
    paint-by-example prepare --format coco --images photos --annotations photos.json --dataset_dir dataset/mine

For OpenImages it also writes the published txt files, bbox/<folder>/<id>.txt. Pictures stay where they are. Problems
with pictures or boxes are counted, and listed in bbox/problems.csv. Running it again is safe. scripts/read_bbox.py
is the same command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser, counted
from ldm.util import UserError

if TYPE_CHECKING:
    import polars as pl

    from ldm.data.prepare.annotations import Problems

    Indices = dict[str, pl.DataFrame]  # split -> index

FORMATS = {  # name -> what --annotations has to be
    "openimages": "the layout of dataset/README.md",
    "coco": "a JSON file of instances, bbox is x,y,width,height in pixels",
    "yolo": "a txt of the same name per picture, with lines `class x y width height`, or polygons, as fractions",
    "yolo-polygons": "as yolo, with lines `class x y x y x y ...`",
    "yolo-pose": "as yolo, with lines `class x y width height` and keypoints",
    "voc": "an XML file of the same name per picture",
    "csv": "rows path,x0,y0,x1,y1 in pixels",
    "masks": "a mask of the same name per picture, 255 = object",
}
OPEN_IMAGES_DIR = Path("dataset/open-images")


def share(text: str) -> float:
    """A flag's value that has to be from 0 to 1."""
    try:
        number = float(text)
        if 0 <= number <= 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a share: use a number from 0 to 1, such as 0.2")


def parser() -> argparse.ArgumentParser:
    from ldm.data.index import SPLITS

    p = command_parser(__doc__)
    p.add_argument(
        "--dataset_dir", type=Path, help="folder in which bbox/ is written (openimages: dataset/open-images)"
    )
    p.add_argument("--format", choices=FORMATS, default="openimages", help="of the annotations (%(default)s)")
    p.add_argument("--images", type=Path, help="folder of the pictures (openimages has its own layout)")
    p.add_argument(
        "--annotations", type=Path, help="coco: a JSON file; csv: path,x0,y0,x1,y1; yolo, voc, masks: a folder"
    )
    p.add_argument("--split", choices=SPLITS, help="openimages: only this one; others: use all pictures for it")
    p.add_argument("--validation", type=share, default=0.05, help="share to hold out, without --split (%(default)s)")
    p.add_argument("--min_area", type=share, default=0.02, help="smallest box, as a share of its picture (%(default)s)")
    p.add_argument("--max_area", type=share, default=0.8, help="largest box, as a share of its picture (%(default)s)")
    p.add_argument("--shards", type=int, metavar="N", help="also pack the pictures into tar shards of about N each")
    return p


def check_flags(opt: argparse.Namespace) -> None:
    """Raises UserError for flags that are out of range, missing, or do not go together."""
    if opt.shards is not None and opt.shards < 1:
        raise UserError(f"--shards {opt.shards} is out of range: use at least 1, for example 1000")
    if opt.min_area >= opt.max_area:
        raise UserError(f"--min_area {opt.min_area:g} is not below --max_area {opt.max_area:g}: correct one of them")
    if opt.format == "openimages":
        if opt.images or opt.annotations:
            others = ", ".join(name for name in FORMATS if name != "openimages")
            raise UserError(f"--images and --annotations need a --format ({others}): add it")
    elif opt.images is None or opt.annotations is None:
        raise UserError(f"--format {opt.format} needs --images and --annotations: add both")
    elif opt.dataset_dir is None:
        raise UserError(f"--format {opt.format} needs --dataset_dir: name a folder for the index, such as dataset/mine")


def read_open_images_layout(opt: argparse.Namespace, problems: Problems) -> Indices:
    """The indices of the published layout. Raises UserError: no pictures."""
    from ldm.data.index import SPLITS, split_folders
    from ldm.data.prepare.annotations import prepare
    from ldm.data.prepare.open_images import read_open_images

    found = [split for split in SPLITS if split_folders(opt.dataset_dir / "images", split)]
    splits = [opt.split] if opt.split else found
    if not set(splits) <= set(found) or not splits:
        what = f"{opt.split} pictures" if opt.split else "pictures"
        raise UserError(
            f"{opt.dataset_dir}/images has no {what}: see dataset/README.md for the layout, or use --format"
        )
    indices = {}
    for split in splits:
        print(f"{split}:")
        boxes = read_open_images(opt.dataset_dir, split)
        indices[split] = prepare(boxes, opt.dataset_dir, opt.min_area, opt.max_area)
        problems.update(boxes.problems)
    return indices


def read_own_pictures(opt: argparse.Namespace, problems: Problems) -> Indices:
    """The indices of pictures with annotations in one of the other formats."""
    from ldm.data.prepare.annotations import prepare
    from ldm.data.prepare.formats import READERS
    from ldm.data.prepare.splits import hold_out

    boxes = READERS[opt.format](Path(os.path.abspath(opt.images)), opt.annotations)
    for line in boxes.problems.found:
        print(line)
    index = prepare(boxes, opt.dataset_dir, opt.min_area, opt.max_area)
    problems.update(boxes.problems)
    if opt.split:
        return {opt.split: index}
    return dict(zip(("train", "validation"), hold_out(index, opt.validation), strict=True))


def write_indices(indices: Indices, root: Path, txt: bool) -> None:
    """Write the index of each split and warn of pictures in several splits. txt: also write the published txt files."""
    from ldm.data.index import SPLITS, BoxIndex
    from ldm.data.prepare.splits import read_index, write_index, write_txt
    from ldm.data.views import COLUMNS

    for split, index in indices.items():
        if txt:
            write_txt(index, root, split)
        path = write_index(index, root, split)
        print(f"{path}: {counted(index.height, 'picture')}, {counted(index['boxes'].list.len().sum(), 'box', 'boxes')}")
        if index.height and set(COLUMNS) & set(index.columns):
            print(f"{BoxIndex(root, split).paired:,} of the boxes can take their reference from another picture")
        for other in set(SPLITS) - set(indices):
            if common := len(index.join(read_index(root, other), on="path", how="semi")):
                print(f"warning: {common:,} of these pictures are in {other}.parquet too")


def report_problems(problems: Problems, opt: argparse.Namespace) -> None:
    """Print what was left out, and write it to bbox/problems.csv."""
    from ldm.data.prepare.annotations import write_problems

    if problems.filtered:
        print(
            f"{problems.filtered:,} boxes left out: their share of the picture's area is below {opt.min_area:g} "
            f"or above {opt.max_area:g}"
        )
    write_problems(problems, opt.dataset_dir)
    for kind, names in problems.names.items():
        print(f"{len(names):,} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")


def update_shards(indices: Indices, root: Path, pictures_per_shard: int | None) -> None:
    """Pack the pictures into shards, or without `pictures_per_shard` warn of shards from an earlier index."""
    from ldm.data.shards import is_stale, pack

    for split in (split for split, index in indices.items() if index.height):
        if pictures_per_shard:
            shards = pack(root, split, pictures_per_shard)
            print(f"{shards[0]} ... {shards[-1].name}: {len(shards)} shards")
        elif is_stale(root, split):
            print(
                f"warning: the {split} shards in {root}/shards were made from an earlier index: add --shards to make "
                "them again"
            )


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_flags(opt)
    from ldm.data.prepare.annotations import Problems

    problems = Problems()
    if opt.format == "openimages":
        opt.dataset_dir = opt.dataset_dir or OPEN_IMAGES_DIR
        indices = read_open_images_layout(opt, problems)
    else:
        indices = read_own_pictures(opt, problems)
    any_left = any(index.height for index in indices.values())
    if any_left:
        write_indices(indices, opt.dataset_dir, txt=opt.format == "openimages")
    report_problems(problems, opt)
    if not any_left:
        raise UserError(
            f"no box is left to train on, so the indices stay as they were: see {opt.dataset_dir}/bbox/problems.csv, "
            f"and note that {opt.format} expects {FORMATS[opt.format]}"
        )
    if opt.shards or (opt.dataset_dir / "shards").exists():  # otherwise PyTorch need not be imported
        update_shards(indices, opt.dataset_dir, opt.shards)
