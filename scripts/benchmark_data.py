"""How fast data is prepared and loaded, next to a straightforward version of the published procedure, in one run.

    python scripts/benchmark_data.py                        # all of it, minutes
    python scripts/benchmark_data.py --pictures 2000 --rows 100000 --samples 50 --entries 10000

Four parts: samples from 1024 x 768 JPEGs at 512 x 512, on one core; read_bbox.py on made-up pictures in 16 folders; the
boxes of a CSV as long as OpenImages' (--rows), without the pictures' headers; an index as long as OpenImages'
(--entries), and what each worker process adds to its memory. The published procedure needs pandas."""

import argparse
import io
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tqdm import tqdm

from ldm.cli.command import command
from ldm.conventions import CLIP_MEAN, CLIP_STD
from ldm.data.index import BoxIndex
from ldm.data.masks import distinct
from ldm.data.open_images import OpenImageDataset
from ldm.data.prepare import annotations
from ldm.data.prepare.formats import read_open_images
from ldm.data.reference import load_augmentation

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
PHOTOS = Path(__file__).resolve().parent.parent / "examples/image"


def photographs(count: int, size: tuple[int, int]) -> list[bytes]:
    """JPEGs of this size, cut from the example photographs."""
    rng, files = np.random.default_rng(0), []
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    for i in range(count):
        source = sources[i % len(sources)]
        width = int(source.width * rng.uniform(0.5, 1))
        height = min(source.height, width * size[1] // size[0])
        x, y = (int(rng.integers(0, free, endpoint=True)) for free in (source.width - width, source.height - height))
        file = io.BytesIO()
        source.crop((x, y, x + width, y + height)).resize(size).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def boxes_csv(path: Path, ids: list[str], rows: int) -> None:
    rng = np.random.default_rng(0)
    x, y = (np.sort(rng.random((rows, 2)), axis=1).round(6) for _ in range(2))
    of = np.sort(rng.integers(0, len(ids), rows))
    pl.DataFrame(
        {
            "ImageID": pl.Series(ids).gather(of),
            "Source": "xclick",
            "LabelName": "/m/01g317",
            "Confidence": 1,
            **{"XMin": x[:, 0], "XMax": x[:, 1], "YMin": y[:, 0], "YMax": y[:, 1]},
            **dict.fromkeys(HEADER.split(",")[8:], 0),
        }
    ).write_csv(path)


def layout(root: Path, pictures: list[bytes], count: int, rows: int, folders: int = 16) -> None:
    """The OpenImages layout with `count` pictures."""
    (root / "annotations").mkdir(parents=True)
    ids = [f"{i:016x}" for i in range(count)]
    for i, name in enumerate(ids):
        folder = root / "images" / f"train_{i % folders:x}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(pictures[i % len(pictures)])
    boxes_csv(root / "annotations/oidv6-train-annotations-bbox.csv", ids, rows)


# ------------------------------------------------------------------------ the published procedure, plainly


def published_read_bbox(root: Path) -> None:
    """For each folder: read the CSV, look each picture's rows up, decode it for its size, write its boxes."""
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


def bezier(a: tuple, pull: tuple, b: tuple, t: float) -> list[float]:
    return [(1 - t) ** 2 * p + 2 * t * (1 - t) * q + t * t * r for p, q, r in zip(a, pull, b, strict=True)]


class PublishedLoader:
    """Two decodes, everything in float at the picture's size, masks of three channels, resizing last."""

    def __init__(self, root: Path, size: int):
        self.files, self.root, self.size = sorted((root / "bbox").rglob("*.txt")), root, size
        self.augmentation = load_augmentation(True)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        file = self.files[i]
        path = self.root / "images" / file.parent.name / f"{file.stem}.jpg"
        boxes = [[int(float(number)) for number in line.split()] for line in file.read_text().splitlines()]
        x0, y0, x1, y1 = random.choice(boxes)
        picture = Image.open(path).convert("RGB")
        width, height = picture.size
        pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        region = pixels[max(0, y0 - 10) : min(height, y1 + 10), max(0, x0 - 10) : min(width, x1 + 10)]
        region = self.augmentation(cv2.resize(region, (224, 224)), np.random.default_rng())
        reference = torch.from_numpy(region.transpose(2, 0, 1).copy()).float().div(255)
        reference = (reference - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
        image = torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy()).float().div(255).sub(0.5).div(0.5)
        left, top = x0 - random.randint(0, int(0.4 * x0)), y0 - random.randint(0, int(0.4 * y0))
        right = x1 + random.randint(0, int(0.4 * (width - x1)))
        bottom = y1 + random.randint(0, int(0.4 * (height - y1)))
        if random.random() < 0.5:
            drawn = Image.new("RGB", (width, height), (255, 255, 255))
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
            pulls = [((x0 + x1) / 2, top), (right, (y0 + y1) / 2), ((x0 + x1) / 2, bottom), (left, (y0 + y1) / 2)]
            points = []
            for a, pull, b in zip(corners, pulls, corners[1:], strict=False):
                arc = [bezier(a, pull, b, i * 0.05) for i in range(1, 19)]
                points += [(x + random.randint(-5, 5), y + random.randint(-5, 5)) for x, y in distinct(np.array(arc))]
            ImageDraw.Draw(drawn).polygon(points, fill=(0, 0, 0))
            mask = torch.from_numpy(np.array(drawn).transpose(2, 0, 1).copy()).float().div(255)[0:1]
        else:
            mask = np.zeros((height, width))
            mask[top:bottom, left:right] = 1
            mask = 1 - torch.from_numpy(mask)[None].float()
        first, last = max(0, right - height), min(left, width - height)
        if first < last:
            x = random.randint(first, last)
            free = random.randint(0, int(0.6 * min(top, left - x, x + height - right, height - bottom)))
            image = image[:, free : height - free, x + free : x + height - free]
            mask = mask[:, free : height - free, x + free : x + height - free]
        image, mask = (F.interpolate(part[None], (self.size, self.size), mode="bilinear")[0] for part in (image, mask))
        return {"GT": image, "inpaint_image": image * mask, "inpaint_mask": mask, "ref_imgs": reference}


# ------------------------------------------------------------------------------------------- the three parts


def preparation(folder: Path, count: int, rows: int, pictures: list[bytes]) -> None:
    layout(folder, pictures, count, rows)
    start = time.perf_counter()
    published_read_bbox(folder)
    published = time.perf_counter() - start
    expected = {path.relative_to(folder): path.read_text() for path in folder.glob("bbox/*/*.txt")}
    os.rename(folder / "bbox", folder / "published")
    ours = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "scripts/read_bbox.py", "--dataset_dir", str(folder)], check=True)
        ours.append(time.perf_counter() - start)
    assert expected == {path.relative_to(folder): path.read_text() for path in folder.glob("bbox/*/*.txt")}
    print(
        f"read_bbox, {count:,} pictures in 16 folders, {rows:,} rows: published {published:.1f} s, "
        f"ours {ours[0]:.2f} s (again: {min(ours):.2f}), {published / ours[0]:.0f} times as fast; "
        f"{len(expected):,} txt files, all equal"
    )


def long_csv(folder: Path, rows: int) -> None:
    """From the CSV to the boxes of each picture; the folder's listing and the headers are made up."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images/train").mkdir(parents=True)
    ids = [f"{i:016x}" for i in range(-(-rows * 174 // 1460))]  # as many as OpenImages has for its 14.6 million rows
    csv = folder / "annotations/oidv6-train-annotations-bbox.csv"
    boxes_csv(csv, ids, rows)

    def sizes(_: annotations.Boxes, pictures: pl.Series, __: Path) -> pl.DataFrame:
        constants = {"path": "x.jpg", "width": 1024, "height": 768}
        return pl.DataFrame({"picture": pictures}).with_columns(pl.lit(v).alias(k) for k, v in constants.items())

    seconds = []
    for _ in range(3):
        listing = patch("ldm.data.prepare.formats.os.listdir", return_value=[f"{name}.jpg" for name in ids])
        with listing, patch("ldm.data.prepare.annotations._sizes", sizes):
            start = time.perf_counter()
            index = annotations.prepare(read_open_images(folder, "train"), folder)
            seconds.append(time.perf_counter() - start)
    print(
        f"{rows:,} rows ({csv.stat().st_size / 1e9:.2f} GB) to {index['boxes'].list.len().sum():,} boxes "
        f"of {index.height:,} pictures: {min(seconds):.1f} s"
    )


def loading(folder: Path, count: int, pictures: list[bytes]) -> None:
    for i in range(count):
        for place, data in (
            (folder / f"images/train_0/{i}.jpg", pictures[i % len(pictures)]),
            (folder / f"bbox/train_0/{i}.txt", box_lines(i)),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    datasets = {
        "published": PublishedLoader(folder, 512),
        "ours": OpenImageDataset("train", str(folder)),
        "ours, exact": OpenImageDataset("train", str(folder), exact=True),
        "ours, no reference augmentation": OpenImageDataset("train", str(folder), reference_augmentation=False),
    }
    seconds = {name: [] for name in datasets}
    for _ in range(5):
        for name, dataset in datasets.items():
            start = time.process_time()
            for i in range(count):
                dataset[i]
            seconds[name].append(time.process_time() - start)
    for name, times in seconds.items():
        ratio = np.median(np.array(seconds["published"]) / np.array(times))
        print(f"samples, {name}: {count / min(times):.0f} per second and core, {ratio:.2f} times the published")


def box_lines(seed: int) -> bytes:
    """Three boxes of 2% to 80% of 1024 x 768."""
    rng, lines = np.random.default_rng(seed), []
    while len(lines) < 3:
        (x0, x1), (y0, y1) = np.sort(rng.random(2)) * 1024, np.sort(rng.random(2)) * 768
        if 0.02 <= (x1 - x0) * (y1 - y0) / (1024 * 768) <= 0.8:
            lines.append(f"{x0} {y0} {x1} {y1}\n")
    return "".join(lines).encode()


def large_index(folder: Path, entries: int) -> None:
    (folder / "bbox").mkdir(parents=True)
    numbers = pl.Series(range(entries))
    boxes = pl.Series([[[10.5, 20.5, 300.5, 400.5]] * 4], dtype=pl.List(pl.Array(pl.Float64, 4)))
    paths = pl.select(path=pl.format("images/train_{}/{}.jpg", numbers % 10, numbers + 10**15))
    paths.with_columns(boxes=pl.lit(boxes).first()).write_parquet(folder / "bbox/train.parquet")
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        index = BoxIndex(folder, "train")
        seconds.append(time.perf_counter() - start)
    added = {}
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=read_all, args=(index, queue))
        process.start()
        added[method] = queue.get()
        process.join()
    print(
        f"index of {entries:,} pictures: opened in {seconds[0]:.2f} s, again in {seconds[1] * 1000:.1f} ms; a worker "
        f"that reads all of it adds {added['fork']:.0f} MB (forked) or {added['spawn']:.0f} MB (spawned) of its own"
    )


def read_all(index: BoxIndex, queue: multiprocessing.Queue) -> None:
    """By how many MB the memory grows that is this process's own, and not the file's pages that all share."""
    before = anonymous_memory()
    for i in range(len(index)):
        index[i]
    queue.put((anonymous_memory() - before) / 1e3)


def anonymous_memory() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous"))


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pictures", type=int, default=20_000)
    p.add_argument("--rows", type=int, default=14_600_000)
    p.add_argument("--samples", type=int, default=400)
    p.add_argument("--entries", type=int, default=1_740_000)
    p.add_argument("--folder", default="/dev/shm", help="where the files go: in memory, so that no disk is measured")
    opt = p.parse_args()
    pictures = photographs(64, (1024, 768))
    with tempfile.TemporaryDirectory(dir=opt.folder) as folder:
        loading(Path(folder, "loading"), opt.samples, pictures)
        preparation(Path(folder, "preparation"), opt.pictures, 10 * opt.pictures, pictures)
        long_csv(Path(folder, "csv"), opt.rows)
        large_index(Path(folder, "index"), opt.entries)


if __name__ == "__main__":
    main()
