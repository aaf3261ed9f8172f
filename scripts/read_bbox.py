"""Prepare pictures with boxes for training: reads annotations, writes <dataset_dir>/bbox/<split>.parquet.

    python scripts/read_bbox.py                        # OpenImages, laid out as dataset/README.md says
    python scripts/read_bbox.py --format coco --images photos --annotations photos.json --dataset_dir dataset/mine

For OpenImages it writes the published txt files, bbox/<folder>/<id>.txt, as well. Pictures stay where they are; what is
wrong with them or their boxes is counted, and listed in bbox/problems.csv. Running it again does no harm."""

import argparse
import os
from pathlib import Path

from ldm.cli.command import command
from ldm.data.index import SPLITS, split_folders
from ldm.data.prepare.annotations import (
    MAX_AREA,
    MIN_AREA,
    Problems,
    hold_out,
    prepare,
    read_index,
    write_index,
    write_problems,
    write_txt,
)
from ldm.data.prepare.formats import READERS, read_open_images
from ldm.util import UserError

EXPECTED = {
    "openimages": "the layout of dataset/README.md",
    "coco": "a json of instances, bbox is x,y,width,height in pixels",
    "yolo": "a txt for each picture, of its name, with lines `class x y width height` in 0..1",
    "voc": "an xml for each picture, of its name",
    "csv": "rows path,x0,y0,x1,y1 in pixels",
    "masks": "a mask for each picture, of its name, 255 = object",
}


def share(text: str) -> float:
    try:
        number = float(text)
        if 0 <= number <= 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text}: has to be a number from 0 to 1, such as 0.2")


def open_images(opt: argparse.Namespace, problems: Problems) -> dict:
    """split -> index, of the published layout."""
    found = [split for split in SPLITS if split_folders(opt.dataset_dir / "images", split)]
    splits = [opt.split] if opt.split else found
    if not set(splits) <= set(found) or not splits:
        what = f"{opt.split} pictures" if opt.split else "pictures"
        raise UserError(
            f"{opt.dataset_dir}/images: has no {what}; see dataset/README.md for the layout, or use --format"
        )
    indices = {}
    for split in splits:
        print(f"{split}:")
        boxes = read_open_images(opt.dataset_dir, split)
        indices[split] = prepare(boxes, opt.dataset_dir, opt.min_area, opt.max_area)
        problems.update(boxes.problems)
    return indices


def own_pictures(opt: argparse.Namespace, problems: Problems) -> dict:
    """split -> index, of annotations in one of the other formats."""
    if opt.images is None or opt.annotations is None:
        raise UserError(f"--format {opt.format} needs --images and --annotations; name both")
    if opt.dataset_dir is None:
        raise UserError(f"--format {opt.format} needs --dataset_dir; name a folder for the index, such as dataset/mine")
    boxes = READERS[opt.format](Path(os.path.abspath(opt.images)), opt.annotations)
    index = prepare(boxes, opt.dataset_dir, opt.min_area, opt.max_area)
    problems.update(boxes.problems)
    if opt.split:
        return {opt.split: index}
    return dict(zip(("train", "validation"), hold_out(index, opt.validation), strict=True))


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset_dir", type=Path, help="where bbox/ goes (openimages: dataset/open-images)")
    p.add_argument("--format", choices=["openimages", *READERS], default="openimages", help="of the annotations")
    p.add_argument("--images", type=Path, help="folder of the pictures (openimages has its own layout)")
    p.add_argument("--annotations", type=Path, help="coco: a json; csv: path,x0,y0,x1,y1; yolo, voc, masks: a folder")
    p.add_argument("--split", choices=SPLITS, help="openimages: only this; others: all pictures are for this")
    p.add_argument("--validation", type=share, default=0.05, help="share held out where no --split is given (0.05)")
    p.add_argument("--min_area", type=share, default=MIN_AREA, help="smallest box, as a share of its picture (0.02)")
    p.add_argument("--max_area", type=share, default=MAX_AREA, help="largest box, likewise (0.8)")
    p.add_argument("--shards", type=int, metavar="N", help="also pack the pictures into tar shards of about N each")
    opt = p.parse_args()
    if opt.shards is not None and opt.shards < 1:
        raise UserError(f"--shards {opt.shards}: has to be at least 1; 1000 is usual")
    if opt.format == "openimages" and (opt.images or opt.annotations):
        raise UserError(f"--images and --annotations go with one of --format {', '.join(READERS)}; add it")
    if opt.min_area >= opt.max_area:
        raise UserError(f"--min_area {opt.min_area:g}: is not below --max_area {opt.max_area:g}; make it so")
    problems = Problems()
    if opt.format == "openimages":
        opt.dataset_dir = opt.dataset_dir or Path("dataset/open-images")
        indices = open_images(opt, problems)
    else:
        indices = own_pictures(opt, problems)
    root = opt.dataset_dir
    kept = any(index.height for index in indices.values())
    for split, index in indices.items() if kept else ():
        if opt.format == "openimages":
            write_txt(index, root, split)
        path = write_index(index, root, split)
        print(f"{path}: {index.height:,} pictures, {index['boxes'].list.len().sum():,} boxes")
        for other in set(SPLITS) - set(indices):
            if common := len(index.join(read_index(root, other), on="path", how="semi")):
                print(f"warning: {common:,} of these pictures are in {other}.parquet too")
    if problems.filtered:
        print(
            f"{problems.filtered:,} boxes left out: their share of the picture's area is below {opt.min_area:g} "
            f"or above {opt.max_area:g}"
        )
    write_problems(problems, root)
    for kind, names in problems.names.items():
        print(f"{len(names):,} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    if not kept:
        raise UserError(f"no box is left to train on, nothing is changed; {opt.format} means {EXPECTED[opt.format]}")
    if opt.shards or (root / "shards").exists():
        from ldm.data.shards import pack, stale  # PyTorch comes with it, which the rest does without

        for split in (split for split, index in indices.items() if index.height):
            if opt.shards:
                shards = pack(root, split, opt.shards)
                print(f"{shards[0]} ... {shards[-1].name}: {len(shards)} shards")
            elif stale(root, split):
                print(
                    f"warning: {root}/shards: those of {split} are of an earlier index; add --shards to pack them anew"
                )


if __name__ == "__main__":
    main()
