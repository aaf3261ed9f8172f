"""Draw the pictures of docs/editing.md, with the miniature model in its world of painted shapes.

    python scripts/editing_figures.py

Writes editing.jpg (whole photo or window, backgrounds, several regions), editing_python.jpg (strengths) and
editing_batch.jpg (a table of edits) to --outdir."""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.cli.command import command, command_parser
from ldm.editing.regions import Region, box_mask
from ldm.files import staging
from ldm.images import grid
from ldm.miniworld.scene import scene
from ldm.pipeline import PaintByExample

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = sorted((ROOT / "examples/mini/Ref_3500").glob("*.png"))
SIZE = (192, 144)  # of a photo, pixels
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
TILE = (288, 216)
TITLE = 16  # pixels, above a tile

Box = tuple[int, int, int, int]


def photo_of(seed: int, regions: int = 1) -> tuple[Image.Image, list[Box]]:
    """A photo and the boxes of its first objects, three pixels larger."""
    pixels, objects = scene((7, seed), SIZE, objects=(regions + 1, regions + 1))
    boxes = [thing.box for thing in objects[:regions]]
    return Image.fromarray(pixels), [(max(x0 - 3, 0), max(y0 - 3, 0), x1 + 3, y1 + 3) for x0, y0, x1, y1 in boxes]


def reference(number: int) -> Image.Image:
    return Image.open(REFERENCES[number % len(REFERENCES)]).convert("RGB")


def outlined(photo: Image.Image, boxes: list[Box]) -> Image.Image:
    picture = photo.copy()
    for number, box in enumerate(boxes, 1):
        draw = ImageDraw.Draw(picture)
        draw.rectangle(box, outline="red")
        if len(boxes) > 1:
            draw.text((box[0] + 3, box[1] + 2), str(number), fill="white")
    return picture


def titled(picture: Image.Image, title: str = "") -> Image.Image:
    tile = Image.new("RGB", (TILE[0], TILE[1] + TITLE), "white")
    scale = min(TILE[0] / picture.width, TILE[1] / picture.height)
    size = round(picture.width * scale), round(picture.height * scale)
    tile.paste(picture.resize(size, Image.Resampling.BICUBIC), ((TILE[0] - size[0]) // 2, TITLE))
    ImageDraw.Draw(tile).text((2, 2), title, fill="black")
    return tile


def options_sheet(edit: PaintByExample) -> Image.Image:
    """Rows: the whole photo and the window; several regions; backgrounds."""
    cells = []
    for seed in (2, 5):
        photo, (box,) = photo_of(seed)
        how = {"image": photo, "mask": box_mask(SIZE, box), "reference": reference(seed), "progress": False}
        cells += [
            titled(outlined(photo, [box]), "photo, region"),
            titled(how["reference"], "reference"),
            titled(edit(**how, context="photo", background="none"), "--context photo --background none: as published"),
            titled(edit(**how), "a window around the mask, the background kept"),
        ]
    photo, boxes = photo_of(11, regions=2)
    regions = [Region(box=tuple(box)) for box in boxes]
    result = edit(photo, regions=regions, references=[reference(3), reference(4)], progress=False)
    cells += [titled(outlined(photo, boxes), "photo, two regions"), titled(reference(3), "reference of 1")]
    cells += [titled(reference(4), "reference of 2"), titled(result, "one after the other")]
    photo, (box,) = photo_of(2)
    around = (max(box[0] - 10, 0), max(box[1] - 10, 0), box[2] + 10, box[3] + 10)
    for background in ("exact", "feather", "poisson", "none"):
        picture = edit(photo, box_mask(SIZE, box), reference(2), background=background, progress=False)
        cells.append(titled(picture.crop(around), f"--background {background}"))
    return grid(cells, rows=4)


def strengths_sheet(edit: PaintByExample) -> Image.Image:
    photo, (box,) = photo_of(5)
    mask, example = box_mask(SIZE, box), reference(8)
    cells = [titled(outlined(photo, [box]), "image, mask"), titled(example, "reference")]
    for strength in STRENGTHS:
        cells.append(titled(edit(photo, mask, example, strength=strength, progress=False), f"strength={strength}"))
    cells.append(titled(edit(photo, mask, (example, reference(9)), progress=False), "with a second reference"))
    return grid(cells, rows=2)


def batch_sheet(folder: Path) -> Image.Image:
    """Three photos by three references, as a table of nine rows."""
    rows, photos = [], []
    for seed in (2, 5, 11):
        photo, (box,) = photo_of(seed)
        photo.save(folder / f"{seed}.png")
        photos.append(outlined(photo, [box]))
        for number in (0, 2, 6):
            example = REFERENCES[number]
            out = f"{seed}_{number}.png"
            rows.append({"image": f"{seed}.png", "box": ",".join(map(str, box)), "reference": example, "out": out})
    with open(folder / "jobs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    batch = [sys.executable, str(ROOT / "scripts/edit_batch.py"), str(folder / "jobs.csv"), "--batch_size", "3"]
    subprocess.run([*batch, "--config", str(MINI_CONFIG), "--ckpt", str(MINI_CKPT)], check=True)
    blank = Image.new("RGB", SIZE, "white")
    cells = [titled(blank), *(titled(reference(number), "reference") for number in (0, 2, 6))]
    for i, photo in enumerate(photos):
        results = [Image.open(folder / row["out"]).convert("RGB") for row in rows[3 * i : 3 * i + 3]]
        cells += [titled(photo, "image, box"), *(titled(each, "out") for each in results)]
    return grid(cells, rows=4)


@command
def main() -> None:
    p = command_parser(__doc__)
    p.add_argument("--outdir", type=Path, default=Path("docs"), help="(%(default)s)")
    opt = p.parse_args()
    edit = PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu")
    sheets = {"editing": options_sheet(edit), "editing_python": strengths_sheet(edit)}
    with tempfile.TemporaryDirectory() as folder:
        sheets["editing_batch"] = batch_sheet(Path(folder))
    with staging(opt.outdir) as temporary:
        for name, sheet in sheets.items():
            sheet.save(temporary / f"{name}.jpg", quality=80)
    print("\n".join(f"wrote {opt.outdir / name}.jpg" for name in sheets))


if __name__ == "__main__":
    main()
