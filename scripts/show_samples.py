"""Look at what training sees: a contact sheet of samples.

    python scripts/show_samples.py --dataset_dir dataset/mine

A row per sample: the picture with its box (red), the box grown by chance (yellow) and the square that is cut out (blue;
the whole picture, squeezed, where no square holds the grown box); the cut-out; the masked image; the mask (white =
paint); the reference, as augmented."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ldm.cli.command import command
from ldm.conventions import mask_to_image, reference_to_image, tensor_to_image
from ldm.data.index import SPLITS
from ldm.data.open_images import OpenImageDataset
from ldm.data.sample import Sample
from ldm.files import staging
from ldm.images import grid
from ldm.util import UserError

TILE = 256  # px
TITLE = 16  # px, the height of a line of text
COLUMNS = ("GT", "inpaint_image", "inpaint_mask (white = paint)", "ref_imgs")
COLOURS = {"window": "dodgerblue", "grown": "yellow", "box": "red"}


def whole_picture(sample: Sample) -> Image.Image:
    """The picture the sample is from, with the boxes drawn on it."""
    picture = Image.fromarray(sample.picture.pixels())
    draw, width = ImageDraw.Draw(picture), max(1, max(picture.size) // TILE * 2)
    for name, colour in COLOURS.items():
        x0, y0, x1, y1 = getattr(sample.plan, name)
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=width)
    return picture


def row(sample: Sample) -> list[Image.Image]:
    entry = sample.entry
    pictures = [
        whole_picture(sample),
        tensor_to_image(entry["GT"]),
        tensor_to_image(entry["inpaint_image"]),
        mask_to_image(entry["inpaint_mask"]).convert("RGB"),
        reference_to_image(entry["ref_imgs"]),
    ]
    titles = [Path(sample.picture.path).name, *COLUMNS]
    return [titled(picture, title) for picture, title in zip(pictures, titles, strict=True)]


def titled(picture: Image.Image, title: str) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE + TITLE), "white")
    tile.paste(ImageOps.pad(picture, (TILE, TILE), color="white"), (0, TITLE))
    ImageDraw.Draw(tile).text((2, 2), title[-42:].encode("latin-1", "replace").decode("latin-1"), fill="black")
    return tile


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset_dir", default="dataset/open-images", help="what read_bbox.py prepared (%(default)s)")
    p.add_argument("--split", choices=SPLITS, default="train")
    p.add_argument("--n", type=int, default=8, help="samples (8)")
    p.add_argument("--image_size", type=int, default=512, help="of training, in pixels (512)")
    p.add_argument("--arbitrary_mask_percent", type=float, default=0.5, help="share of blobs among the masks (0.5)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, default="results/samples.png")
    opt = p.parse_args()
    if opt.n < 1 or opt.seed < 0:
        raise UserError(f"--n {opt.n} --seed {opt.seed}: have to be at least 1 and 0")
    if opt.output.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"--output {opt.output}: has no ending of a picture; name a file such as samples.png")
    dataset = OpenImageDataset(opt.split, opt.dataset_dir, opt.arbitrary_mask_percent, opt.image_size, seed=opt.seed)
    order = np.random.default_rng(opt.seed).permutation(len(dataset))
    keys = [(i // len(dataset), int(order[i % len(dataset)])) for i in range(opt.n)]
    sheet = grid([picture for key in keys for picture in row(dataset.sample(key))], rows=opt.n)
    with staging(opt.output.parent) as temporary:
        sheet.save(temporary / opt.output.name)
    print(f"wrote {opt.output}: {opt.n} samples, from {len(dataset):,} pictures")


if __name__ == "__main__":
    main()
