"""Draw a contact sheet of training samples, to check data before training on it.

    paint-by-example show-samples --dataset_dir dataset/mine

Each row is a sample: the picture with its box (red), the randomly grown box (yellow) and the square that is cut out
(blue; where no square contains the grown box, the whole picture is squeezed instead); the cut-out; the masked image;
the mask (white = paint); the augmented reference. With --pair_share, the picture that the reference comes from follows,
with its box. scripts/show_samples.py is the same command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser
from ldm.util import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.data.masks import Box
    from ldm.data.sample import Sample
    from ldm.images import PictureFile

TILE = 256  # px
TITLE = 16  # px, the height of a line of text
LETTER = 6  # px, its width
COLUMNS = ("GT", "inpaint_image", "inpaint_mask (white = paint)", "ref_imgs")
COLOURS = {"window": "dodgerblue", "grown": "yellow", "box": "red"}


def parser() -> argparse.ArgumentParser:
    from ldm.data.index import SPLITS

    p = command_parser(__doc__)
    p.add_argument(
        "--dataset_dir", default="dataset/open-images", help="folder that read_bbox.py prepared (%(default)s)"
    )
    p.add_argument("--split", choices=SPLITS, default="train", help="whose pictures to draw (%(default)s)")
    p.add_argument("--n", type=int, default=8, help="number of samples (8)")
    p.add_argument("--image_size", type=int, default=512, help="of a training sample, in pixels (512)")
    p.add_argument("--arbitrary_mask_percent", type=float, default=0.5, help="share of blobs among the masks (0.5)")
    p.add_argument("--pair_share", type=float, default=0.0, help="share of references from other pictures (0)")
    p.add_argument("--seed", type=int, default=0, help="of the choice of pictures and the samples (0)")
    p.add_argument("--output", type=Path, default="results/samples.png", help="file for the sheet (%(default)s)")
    return p


def row(sample: Sample, pairs: bool) -> list[Image]:
    """The titled tiles of a sample, from left to right. pairs: with the picture that the reference comes from."""
    from ldm.conventions import mask_to_image, reference_to_image, tensor_to_image
    from ldm.data.sample import View

    entry = sample.entry
    pictures = [
        whole_picture(sample.picture, {colour: getattr(sample.plan, name) for name, colour in COLOURS.items()}),
        tensor_to_image(entry["GT"]),
        tensor_to_image(entry["inpaint_image"]),
        mask_to_image(entry["inpaint_mask"]).convert("RGB"),
        reference_to_image(entry["ref_imgs"]),
    ]
    titles = [Path(sample.picture.path).name, *COLUMNS]
    if pairs:
        view = sample.view or View(sample.picture, sample.plan.box)
        pictures.append(whole_picture(view.picture, {COLOURS["box"]: view.box}))
        titles.append(Path(view.picture.path).name)
    return [titled(picture, title) for picture, title in zip(pictures, titles, strict=True)]


def whole_picture(file: PictureFile, boxes: Mapping[str, Box]) -> Image:
    """A picture with boxes drawn on it. boxes: colour -> box."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(file.pixels())
    draw, width = ImageDraw.Draw(picture), max(1, max(picture.size) // TILE * 2)
    for colour, (x0, y0, x1, y1) in boxes.items():
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=width)
    return picture


def titled(picture: Image, title: str, side: int = TILE) -> Image:
    """The picture, fitted into a square tile of this side, below its title, whose end is left if it is too long."""
    from PIL import Image, ImageDraw, ImageOps

    tile = Image.new("RGB", (side, side + TITLE), "white")
    tile.paste(ImageOps.pad(picture, (side, side), color="white"), (0, TITLE))
    text = title[-(side // LETTER) :].encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(tile).text((2, 2), text, fill="black")
    return tile


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    import numpy as np
    from PIL import Image

    from ldm.data.open_images import OpenImageDataset
    from ldm.files import staging
    from ldm.images import grid

    if opt.n < 1 or opt.seed < 0:
        raise UserError(f"--n {opt.n} or --seed {opt.seed} is out of range: use at least 1 sample and seed 0")
    if Image.registered_extensions().get(opt.output.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--output {opt.output} has no extension of a picture: name a file such as samples.png")
    dataset = OpenImageDataset(
        *(opt.split, opt.dataset_dir, opt.arbitrary_mask_percent, opt.image_size),
        seed=opt.seed,
        pair_share=opt.pair_share,
    )
    order = np.random.default_rng(opt.seed).permutation(len(dataset))
    keys = [(i // len(dataset), int(order[i % len(dataset)])) for i in range(opt.n)]
    sheet = grid([tile for key in keys for tile in row(dataset.sample(key), opt.pair_share > 0)], rows=opt.n)
    with staging(opt.output.parent) as temporary:
        sheet.save(temporary / opt.output.name)
    print(f"wrote {opt.output}: {opt.n} samples, from {len(dataset):,} pictures")
