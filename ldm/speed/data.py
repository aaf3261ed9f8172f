"""How fast training data is prepared and loaded, beside the published procedure (published_data.py).

Each measure_ function writes its files into `folder` and returns its result as text."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.queues import Queue
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import polars as pl
import torch
from PIL import Image

from ldm.data.index import BoxIndex
from ldm.data.open_images import OpenImageDataset
from ldm.data.prepare.annotations import Boxes, prepare
from ldm.data.prepare.open_images import read_open_images
from ldm.speed.published_data import PublishedDataset, prepare_as_published
from ldm.util import shipped

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
SIZE = (1024, 768)  # of the photographs, as in OpenImages
PICTURES, ROWS = 1_740_000, 14_600_000  # of OpenImages, in training
SMALL, LARGE = 0.02, 0.8  # smallest and largest box, as a share of the picture


def photographs(count: int) -> list[bytes]:
    """JPEGs of SIZE, cut at random from the example photographs."""
    rng, files = np.random.default_rng(0), []
    sources = [Image.open(path).convert("RGB") for path in sorted(shipped("examples/image").glob("*.jpg"))]
    for i in range(count):
        source = sources[i % len(sources)]
        width = int(source.width * rng.uniform(0.5, 1))
        height = min(source.height, width * SIZE[1] // SIZE[0])
        x, y = (int(rng.integers(0, free, endpoint=True)) for free in (source.width - width, source.height - height))
        file = io.BytesIO()
        source.crop((x, y, x + width, y + height)).resize(SIZE).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def measure_loading(folder: Path, count: int, pictures: list[bytes]) -> str:
    """Samples from JPEGs of 1024 x 768 at 512 x 512, in one process with one thread. pictures: see photographs."""
    for i in range(count):
        for place, data in (
            (folder / f"images/train_0/{i}.jpg", pictures[i % len(pictures)]),
            (folder / f"bbox/train_0/{i}.txt", _random_boxes(i)),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    datasets: dict[str, PublishedDataset | OpenImageDataset] = {
        "published": PublishedDataset(folder, 512),
        "ours": OpenImageDataset("train", str(folder)),
        "ours, exact": OpenImageDataset("train", str(folder), exact=True),
        "ours, no reference augmentation": OpenImageDataset("train", str(folder), reference_augmentation=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in datasets}
    for _ in range(5):
        for name, dataset in datasets.items():
            start = time.process_time()
            for i in range(count):
                dataset[i]
            seconds[name].append(time.process_time() - start)
    lines: list[str] = []
    for name, times in seconds.items():
        ratio = np.median(np.array(seconds["published"]) / np.array(times))
        lines.append(f"samples, {name}: {count / min(times):.0f} per second and core, {ratio:.2f} times the published")
    return "\n".join(lines)


def _random_boxes(seed: int) -> bytes:
    """Three boxes of 2% to 80% of SIZE, as a published txt file."""
    rng, lines = np.random.default_rng(seed), []
    width, height = SIZE
    while len(lines) < 3:
        (x0, x1), (y0, y1) = np.sort(rng.random(2)) * width, np.sort(rng.random(2)) * height
        if SMALL <= (x1 - x0) * (y1 - y0) / (width * height) <= LARGE:
            lines.append(f"{x0} {y0} {x1} {y1}\n")
    return "".join(lines).encode()


def measure_preparation(folder: Path, count: int, rows: int, pictures: list[bytes]) -> str:
    """scripts/read_bbox.py on `count` pictures in 16 folders with `rows` boxes; checks that it writes the same files as
    the published procedure."""
    _write_open_images(folder, pictures, count, rows)
    start = time.perf_counter()
    prepare_as_published(folder)
    published = time.perf_counter() - start
    expected = _txt_files(folder)
    os.rename(folder / "bbox", folder / "published")
    ours = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "scripts/read_bbox.py", "--dataset_dir", str(folder)], check=True)
        ours.append(time.perf_counter() - start)
    assert expected == _txt_files(folder)
    return (
        f"read_bbox, {count:,} pictures in 16 folders, {rows:,} rows: published {published:.1f} s, "
        f"ours {ours[0]:.2f} s (again: {min(ours):.2f}), {published / ours[0]:.0f} times as fast; "
        f"{len(expected):,} txt files, all equal"
    )


def _txt_files(folder: Path) -> dict[Path, str]:
    return {path.relative_to(folder): path.read_text() for path in folder.glob("bbox/*/*.txt")}


def _write_open_images(root: Path, pictures: list[bytes], count: int, rows: int, folders: int = 16) -> None:
    """`count` pictures with `rows` boxes in the layout of OpenImages."""
    (root / "annotations").mkdir(parents=True)
    ids = [f"{i:016x}" for i in range(count)]
    for i, name in enumerate(ids):
        folder = root / "images" / f"train_{i % folders:x}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(pictures[i % len(pictures)])
    _write_boxes(root / "annotations/oidv6-train-annotations-bbox.csv", ids, rows)


def _write_boxes(path: Path, ids: list[str], rows: int) -> None:
    rng = np.random.default_rng(0)
    x, y = (np.sort(rng.random((rows, 2)), axis=1).round(6) for _ in range(2))
    picture = np.sort(rng.integers(0, len(ids), rows))
    pl.DataFrame(
        {
            "ImageID": pl.Series(ids).gather(picture),
            "Source": "xclick",
            "LabelName": "/m/01g317",
            "Confidence": 1,
            **{"XMin": x[:, 0], "XMax": x[:, 1], "YMin": y[:, 0], "YMax": y[:, 1]},
            **dict.fromkeys(HEADER.split(",")[8:], 0),
        }
    ).write_csv(path)


def measure_long_csv(folder: Path, rows: int) -> str:
    """From a CSV of `rows` boxes to the boxes of each picture, without reading folders and pictures' headers."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images/train").mkdir(parents=True)
    ids = [f"{i:016x}" for i in range(-(-rows * PICTURES // ROWS))]
    csv = folder / "annotations/oidv6-train-annotations-bbox.csv"
    _write_boxes(csv, ids, rows)

    def constant_sizes(_: Boxes, pictures: pl.Series, __: Path) -> pl.DataFrame:
        constants = {"path": "x.jpg", "width": SIZE[0], "height": SIZE[1]}
        return pl.DataFrame({"picture": pictures}).with_columns(pl.lit(v).alias(k) for k, v in constants.items())

    seconds = []
    for _ in range(3):
        listing = patch("ldm.data.prepare.open_images.os.listdir", return_value=[f"{name}.jpg" for name in ids])
        with listing, patch("ldm.data.prepare.annotations._read_sizes", constant_sizes):
            start = time.perf_counter()
            index = prepare(read_open_images(folder, "train"), folder)
            seconds.append(time.perf_counter() - start)
    return (
        f"{rows:,} rows ({csv.stat().st_size / 1e9:.2f} GB) to {index['boxes'].list.len().sum():,} boxes "
        f"of {index.height:,} pictures: {min(seconds):.1f} s"
    )


def measure_large_index(folder: Path, entries: int) -> str:
    """Opening an index of `entries` pictures, and the memory that reading all of it adds to a worker process."""
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
    for method, context in (
        ("fork", multiprocessing.get_context("fork")),
        ("spawn", multiprocessing.get_context("spawn")),
    ):
        queue = context.Queue()
        process = context.Process(target=_read_all, args=(index, queue))
        process.start()
        added[method] = queue.get()
        process.join()
    return (
        f"index of {entries:,} pictures: opened in {seconds[0]:.2f} s, again in {seconds[1] * 1000:.1f} ms; a worker "
        f"that reads all of it adds {added['fork']:.0f} MB (forked) or {added['spawn']:.0f} MB (spawned) of its own"
    )


def _read_all(index: BoxIndex, queue: Queue) -> None:
    """Reports by how many MB this process's own memory grows, without the file's pages that processes share."""
    before = _anonymous_memory()
    for i in range(len(index)):
        index[i]
    queue.put((_anonymous_memory() - before) / 1e3)


def _anonymous_memory() -> int:
    """kB."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous"))
