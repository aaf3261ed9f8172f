"""Pictures and annotations for the tests of scripts/read_bbox.py, and readers of the files that it writes."""

import csv
import json

import polars as pl
from PIL import Image

from ldm.data.index import SPLITS
from ldm.images import ORIENTATION
from tests.conftest import GOLDEN

PUBLISHED = json.loads((GOLDEN / "eval_read_bbox.json").read_text())
CSV = {split: f"{name}-annotations-bbox.csv" for split, name in zip(SPLITS, ("oidv6-train", *SPLITS[1:]), strict=True)}


def picture(path, size, orientation=None):
    """Writes a black picture whose upright size is `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1] if orientation == 6 else size)
    if orientation:
        image.getexif()[ORIENTATION] = orientation
    image.save(path, exif=image.getexif())


def open_images(root, rows, split="test"):
    """Writes annotations/<csv of the split>. rows: (id, label, x0, y0, x1, y1)."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    with open(root / "annotations" / CSV[split], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"])
        writer.writerows((name, "x", label, 1, x0, x1, y0, y1, 0) for name, label, x0, y0, x1, y1 in rows)


def txt(root):
    bbox = root / "bbox"
    return {str(file.relative_to(bbox)): file.read_text() for file in bbox.glob("[!.]*/*.txt")}


def numbers(text):
    return [[float(number) for number in line.split()] for line in text.splitlines()]


def table(root, split="train"):
    """The Parquet index: path -> its row."""
    return {row["path"]: row for row in pl.read_parquet(root / "bbox" / f"{split}.parquet").iter_rows(named=True)}


def listed(root):
    with open(root / "bbox" / "problems.csv", newline="") as file:
        return [(row["kind"], row["name"]) for row in csv.DictReader(file)]


OWN = {  # name -> size, boxes in pixels
    "a.jpg": ((100, 80), [(10, 20, 60, 70)]),
    "b.png": ((64, 48), [(0, 0, 32, 48)]),
    "c.JPG": ((90, 60), [(45, 10, 90, 50)]),
    "turned.jpg": ((100, 60), [(50, 5, 95, 35)]),
    "sub/d.webp": ((33, 77), [(7, 11, 29, 53)]),
    "sub/e.jpg": ((120, 90), [(10, 10, 50, 50), (30, 20, 110, 80)]),
}


def own(kind, dataset_dir, images, annotations):
    paths = ("--dataset_dir", dataset_dir, "--images", images, "--annotations", annotations)
    return ("--format", kind, *paths)


def annotate(kind, folder):
    """Writes OWN's boxes in a format -> the path for --annotations."""
    folder.mkdir(parents=True)
    if kind == "coco":
        images, annotations = [], []
        for number, (name, (size, boxes)) in enumerate(OWN.items()):
            images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
            annotations += [
                {"image_id": number, "category_id": 9, "bbox": [x0, y0, x1 - x0, y1 - y0]} for x0, y0, x1, y1 in boxes
            ]
        annotations.append({"image_id": 0, "category_id": 9, "bbox": [0, 0, 50, 50], "iscrowd": 1})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 9, "name": "cat"}]}
        (folder / "a.json").write_text(json.dumps(content))
        return folder / "a.json"
    if kind.startswith("csv"):
        rows = [(name, *box) for name, (_, boxes) in OWN.items() for box in boxes]
        with open(folder / "a.csv", "w", newline="") as file:
            writer = csv.writer(file)
            if "header" in kind:
                writer.writerow(["path", "x0", "y0", "x1", "y1", *(["label"] if "label" in kind else [])])
            writer.writerows([*row, *(["cat"] if "label" in kind else [])] for row in rows)
        return folder / "a.csv"
    for name, ((width, height), boxes) in OWN.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if kind == "voc":
            edges = ("xmin", "ymin", "xmax", "ymax")
            things = [
                "".join(f"<{edge}>{number}</{edge}>" for edge, number in zip(edges, box, strict=True)) for box in boxes
            ]
            text = "".join(f"<object><name>cat</name><bndbox>{thing}</bndbox></object>" for thing in things)
            file.with_suffix(".xml").write_text(f"<annotation>{text}</annotation>")
        elif kind == "masks":
            mask = Image.new("L", (width, height))
            for box in boxes:
                mask.paste(255, box)
            mask.save(file.with_suffix(".png"))
        else:
            lines = []
            for x0, y0, x1, y1 in boxes:
                x0, y0, x1, y1 = x0 / width, y0 / height, x1 / width, y1 / height
                middle = f"{(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f}"
                lines.append(f"2 {middle} {x1 - x0:.6f} {y1 - y0:.6f}\n")
                if kind == "polygons":  # a diamond
                    x, y = middle.split()
                    lines[-1] = f"2 {x0:.6f} {y} {x} {y1:.6f} {x1:.6f} {y} {x} {y0:.6f}\n"
            file.with_suffix(".txt").write_text("".join(lines))
    if kind in ("yolo", "polygons"):
        (folder / "classes.txt").write_text("dog\nbird\ncat\n")
    return folder
