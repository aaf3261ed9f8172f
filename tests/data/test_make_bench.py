"""Squares for FID and benchmarks of one's own pictures: scripts/create_square_gt_for_fid.py and make_test_bench.py.

Colours show where a pixel comes from: red is x, green is y, blue is the picture's number."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import ldm.data.bench.make as module
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.data.bench.make import box_mask, square_around
from ldm.data.bench.squares import square_names
from ldm.images import ORIENTATION
from tests.conftest import ROOT

SIDE = 64  # of the pictures' shorter side: squares of this size are not resized


def positions(width, height, number=0):
    """(H,W,3) uint8"""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, number)], axis=-1).astype(np.uint8)


def save(pixels, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def pixels_of(path):
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.format == "PNG"
        return np.asarray(image)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------ squares


def squares(script, images, outdir, *options):
    return script("create_square_gt_for_fid", "--images", images, "--outdir", outdir, *options)


def test_squares_are_the_middle_of_each_picture(tmp_path, script):
    images, out = tmp_path / "photos", tmp_path / "squares"
    save(positions(101, SIDE), images / "wide.png")
    save(positions(SIDE, 90), images / "deep/er/high.tif")
    save(positions(SIDE, SIDE), images / "deep/square.BMP")
    save(positions(100, SIDE), images / ".hidden.png")
    (images / "notes.txt").write_text("no picture")
    code, text, err = squares(script, images, out, "--size", SIDE)
    assert code == 0 and "3 squares" in text and "cannot" not in err
    assert set(contents(out)) == {"wide.png", "deep/er/high.png", "deep/square.png"}
    assert np.array_equal(pixels_of(out / "wide.png"), positions(101, SIDE)[:, 18:82])
    assert np.array_equal(pixels_of(out / "deep/er/high.png"), positions(SIDE, 90)[13:77])
    assert np.array_equal(pixels_of(out / "deep/square.png"), positions(SIDE, SIDE))


def test_squares_are_resized_from_the_square_alone(tmp_path, script):
    """Red surrounds a blue square on the left and right and must not show at any size."""
    pixels = np.full((50, 150, 3), (0, 0, 200), np.uint8)
    pixels[:, :50] = pixels[:, 100:] = (255, 0, 0)
    save(pixels, tmp_path / "photos/a.png")
    for size in (20, 130):
        assert squares(script, tmp_path / "photos", tmp_path / "out", "--size", size)[0] == 0
        found = pixels_of(tmp_path / "out/a.png")  # the one of another size was made anew
        assert found.shape == (size, size, 3) and (found == (0, 0, 200)).all()


def test_squares_are_upright_rgb_without_what_else_the_file_holds(tmp_path, script):
    upright = positions(90, SIDE)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save(np.rot90(upright).copy(), tmp_path / "photos/turned.png", exif=exif)
    save(upright[..., 0].copy(), tmp_path / "photos/grey.png", icc_profile=b"some profile")
    assert squares(script, tmp_path / "photos", tmp_path / "out", "--size", SIDE)[0] == 0
    assert np.array_equal(pixels_of(tmp_path / "out/turned.png"), upright[:, 13:77])
    assert np.array_equal(pixels_of(tmp_path / "out/grey.png"), upright[:, 13:77, [0, 0, 0]])
    with Image.open(tmp_path / "out/grey.png") as image:
        assert not image.info and not image.getexif()


def test_names_that_collide_keep_their_endings(tmp_path, script):
    for number, name in enumerate(("a.jpg", "a.png", "a.jpg.png", "b.png", "sub/a.png")):
        save(np.full((8, 8, 3), 40 * number, np.uint8), tmp_path / "photos" / name)
    assert squares(script, tmp_path / "photos", tmp_path / "out", "--size", 8)[0] == 0
    greys = {name: pixels_of(tmp_path / "out" / name).max() for name in contents(tmp_path / "out")}
    assert greys == {"a.jpg.png": 0, "a.png.png": 40, "a.jpg.png.png": 80, "b.png": 120, "sub/a.png": 160}
    names = square_names(map(Path, ("a.jpg", "A.png"))).values()  # one file, on some file systems
    assert sorted(map(str, names)) == ["A.png.png", "a.jpg.png"]


def test_pictures_that_cannot_be_read_are_named(tmp_path, script):
    save(positions(20, 10), tmp_path / "photos/good.png")
    data = (tmp_path / "photos/good.png").read_bytes()
    (tmp_path / "photos/cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "photos/empty.jpg").write_bytes(b"")
    code, text, err = squares(script, tmp_path / "photos", tmp_path / "out")
    assert code == 0 and "1 squares" in text and set(contents(tmp_path / "out")) == {"good.png"}
    assert "2 pictures cannot be read" in err and "cut.png" in err and "empty.jpg" in err
    (tmp_path / "photos/good.png").unlink()
    code, _, err = squares(script, tmp_path / "photos", tmp_path / "out2")
    assert code == 2 and "none of the 2 pictures in" in err and "name another folder" in err


def test_squares_errors(tmp_path, script):
    save(positions(20, 10), tmp_path / "photos/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for images, out, options, words in (
        ("none", "out", (), "does not exist"),
        ("photos/a.png", "out", (), "does not exist"),
        ("empty", "out", (), "contains no pictures"),
        ("photos", "photos", (), "is inside"),
        ("photos", "empty/../photos/squares", (), "is inside"),
        ("photos", "file", (), "writing to"),
        ("photos", "out", ("--size", 7), "--size 7 is out of range"),
        ("photos", "out", ("--size", 5000), "--size 5000 is out of range"),
    ):
        code, _, err = squares(script, tmp_path / images, tmp_path / out, *options)
        assert code == 2 and words in err and err.splitlines()[-1].startswith("create_square_gt_for_fid.py: error: ")
        assert set(contents(tmp_path)) == {"photos/a.png", "file"}


def test_squaring_goes_on_after_a_kill(tmp_path, script):
    noise = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    for i in range(60):
        save(noise + np.uint8(i), tmp_path / f"photos/{i:03}.bmp")
    out = tmp_path / "out"
    command = ["scripts/create_square_gt_for_fid.py", "--images", tmp_path / "photos", "--outdir", out, "--size", "400"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("[!.]*"))) < 5:
        time.sleep(0.002)
    process.kill()
    process.wait()
    time.sleep(0.2)  # its helpers end themselves
    done = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    assert 5 <= len(done) < 60
    assert all(pixels_of(path).shape == (400, 400, 3) for path in done)
    assert squares(script, tmp_path / "photos", out, "--size", 400)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert squares(script, tmp_path / "photos", tmp_path / "again", "--size", 400)[0] == 0
    assert len(contents(out)) == 60 and contents(out) == contents(tmp_path / "again")


# ------------------------------------------------------------------------------------------ geometry


def test_square_around_is_the_most_central_that_holds_the_box():
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = rng.integers(1, 30, size=2).tolist()
        x0, x1 = sorted(rng.uniform(0, width, size=2).tolist())
        y0, y1 = sorted(rng.uniform(0, height, size=2).tolist())
        side = min(width, height)
        fitting = [
            (x, y)
            for x in range(width - side + 1)
            for y in range(height - side + 1)
            if x <= x0 and x1 <= x + side and y <= y0 and y1 <= y + side
        ]
        found = square_around((x0, y0, x1, y1), (width, height))
        assert (found is None) == (not fitting)
        if found:
            distance = {
                corner: np.hypot(*(np.add(corner, side / 2) - ((x0 + x1) / 2, (y0 + y1) / 2))) for corner in fitting
            }
            x, y, *end = found
            assert end == [x + side, y + side] and distance[x, y] == pytest.approx(min(distance.values()))


def test_box_mask():
    mask = box_mask((12.0, 20.6, 14.0, 30.0), (10, 20, 30, 40), 10)  # half the size
    expected = np.zeros((10, 10), np.uint8)
    expected[0:5, 1:2] = 255
    assert np.array_equal(mask, expected)
    for box in ((10, 20, 10.1, 20.1), (29.9, 39.9, 30, 40)):  # less than a pixel
        assert (box_mask(box, (10, 20, 30, 40), 10) == 255).sum() == 1


# ------------------------------------------------------------------------------------------ the benchmark

SIZES = [(100, SIDE), (SIDE, 100), (SIDE, SIDE)]


class Data:
    """A prepared data set: picture number -> its size and boxes (x0, y0, x1, y1, label)."""

    def __init__(self, root, script):
        self.root, self.script, self.sizes, self.boxes = root, script, {}, {}

    def add(self, number, size, *boxes):
        self.sizes[number], self.boxes[number] = size, boxes
        save(positions(*size, number), self.file(number))

    def file(self, number):
        return self.root / "photos" / f"{number}.png"

    def prepare(self, *options):
        lines = [f"{number}.png,{','.join(map(str, box))}" for number, boxes in self.boxes.items() for box in boxes]
        (self.root / "boxes.csv").write_text("\n".join(lines))
        words = ("--images", self.root / "photos", "--annotations", self.root / "boxes.csv", "--dataset_dir", self.root)
        code, _, err = self.script("read_bbox", "--format", "csv", *words, "--split", "validation", *options)
        assert code == 0, err

    def make(self, outdir, *options):
        words = ("--dataset_dir", self.root, "--outdir", outdir, "--size", SIDE)
        return self.script("make_test_bench", *words, *options)


@pytest.fixture
def data(tmp_path, script):
    """24 pictures, each with a cat at a different place, some also with a dog or a hat."""
    data, rng = Data(tmp_path / "data", script), np.random.default_rng(1)
    for number in range(24):
        width, height = size = SIZES[number % 3]
        boxes = []
        for label in ("cat", "dog", "hat")[: 1 + number % 3]:
            x, y, w, h = (
                int(rng.integers(*limits)) for limits in ((0, width - 40), (0, height - 40), (12, 40), (12, 40))
            )
            boxes.append((x, y, x + w, y + h, label))
        data.add(number, size, *boxes)
    data.prepare()
    return data


def cases(outdir):
    with open(outdir / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def number_of(pixels):
    (number,) = np.unique(pixels[..., 2])
    return int(number)


def test_cases_are_cut_from_the_boxes(data, tmp_path):
    out = tmp_path / "bench"
    code, text, _ = data.make(out)
    assert code == 0 and "24 cases, from 24 pictures" in text and "left out" not in text
    ids = np.load(out / "id_list.npy")
    assert ids.dtype == np.int64 and ids.tolist() == list(range(24))
    seen, labels = set(), set()
    for i, row in zip(ids, cases(out), strict=True):
        assert row["id"] == f"{i:012}"
        photo = pixels_of(out / f"GT_3500/{i:012}_GT.png")
        reference = pixels_of(out / f"Ref_3500/{i:012}_ref.png")
        number, other = number_of(photo), number_of(reference)
        (width, height), (x, y) = data.sizes[number], photo[0, 0, :2].tolist()
        assert np.array_equal(photo, positions(width, height, number)[y : y + SIDE, x : x + SIDE])

        with Image.open(out / f"Mask_bbox_3500/{i:012}_mask.png") as image:
            mask = np.asarray(image)
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
        label = {box[:4]: box[4] for box in data.boxes[number]}[box]  # it is one of the picture's boxes
        assert (mask == 255).sum() == (box[2] - box[0]) * (box[3] - box[1]) and set(np.unique(mask)) <= {0, 255}

        width, height = data.sizes[other]
        padded = {
            (max(0, x0 - 10), max(0, y0 - 10), min(width, x1 + 10), min(height, y1 + 10)): text
            for x0, y0, x1, y1, text in data.boxes[other]
        }
        x0, y0, x1, y1 = (*reference[0, 0, :2].tolist(), *(reference[-1, -1, :2].astype(int) + 1).tolist())
        assert padded[x0, y0, x1, y1] == label and other != number
        assert np.array_equal(reference, positions(width, height, other)[y0:y1, x0:x1])

        assert row["box"] == " ".join(map(str, box)) and row["label"] == label
        paths = [data.root / row[name] for name in ("source", "reference")]
        assert [path.resolve() for path in paths] == [data.file(number).resolve(), data.file(other).resolve()]
        assert tuple(map(int, row["reference_box"].split())) in {box[:4] for box in data.boxes[other]}
        seen.add(number)
        labels.add(label)
    assert seen == set(range(24)) and labels == {"cat", "dog", "hat"}


def test_the_dataset_reads_it_and_the_mask_lies_on_the_object(tmp_path, script):
    """White objects on black in pictures larger than the benchmark's: the mask covers the white pixels."""
    data, rng = Data(tmp_path / "data", script), np.random.default_rng(2)
    for number in range(4):
        width, height = size = (240, 160) if number % 2 else (160, 240)
        x, y = (5 * int(rng.integers((side - 70) // 5)) for side in size)  # 5 px of these are 2 of the benchmark's
        data.add(number, size, (x, y, x + 70, y + 60, "cat"))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y : y + 60, x : x + 70] = 255
        save(pixels, data.file(number))
    data.prepare()
    assert data.make(tmp_path / "bench")[0] == 0
    bench = COCOImageDataset(tmp_path / "bench")
    assert len(bench) == 4
    for i in range(4):
        case = bench[i]
        assert case["id"] == f"{i:012}"
        assert case["GT"].shape == (3, SIDE, SIDE) and case["ref_imgs"].shape == (3, 224, 224)
        painted, white = (case["inpaint_mask"][0] == 0).numpy(), (case["GT"][0] > 0).numpy()
        assert painted.sum() == white.sum() == 28 * 24 and np.array_equal(painted, white)


def test_the_same_seed_makes_the_same_files(data, tmp_path, monkeypatch):
    assert data.make(tmp_path / "a")[0] == data.make(tmp_path / "seed", "--seed", 5)[0] == 0
    monkeypatch.setattr("ldm.data.processes.cores", lambda: 1)
    monkeypatch.setattr(module, "PICTURES_PER_TASK", 1)
    monkeypatch.setattr(module, "BATCH", 5)
    assert data.make(tmp_path / "b")[0] == 0
    first = contents(tmp_path / "a")
    assert len(first) == 3 * 24 + 2 and first == contents(tmp_path / "b")
    sources = [[row["source"] for row in cases(tmp_path / name)] for name in ("a", "seed")]
    assert sources[0] != sources[1] and sorted(sources[0]) == sorted(sources[1])
    assert data.make(tmp_path / "few", "--count", 7)[0] == 0
    few = contents(tmp_path / "few")
    assert len(few) == 3 * 7 + 2
    assert all(few[name] == first[name] for name in few if name.endswith(".png"))


def test_all_instances_are_drawn(data):
    """A box's references are distinct and on other pictures; over many seeds each occurs equally often."""
    instances, times = module.Instances(data.root, "validation"), {}
    for seed in range(300):
        for instance, references in instances.draft(5, seed):
            assert {reference.label for reference in references} == {instance.label}
            assert len({(reference.path, reference.box) for reference in references}) == len(references)
            assert all(reference.path != instance.path for reference in references)
            if instance.label == "cat":
                times[references[0].path] = times.get(references[0].path, 0) + 1
    assert len(times) == 23 and max(times.values()) < 35  # 13 expected, and 35 less than once in a million


def test_boxes_that_cannot_be_used(tmp_path, script):
    data = Data(tmp_path / "data", script)
    data.add(0, (100, SIDE), (0, 0, 90, 30, "cat"))  # too long
    data.add(1, (SIDE, 100), (0, 0, 30, 90, "cat"), (10, 10, 40, 40, "cat"))  # one of two too long
    data.add(2, (SIDE, SIDE), (0, 0, 30, 30, "dog"), (30, 30, 60, 60, "dog"))  # two of a kind, on one picture
    data.add(3, (SIDE, SIDE), (0, 0, 30, 30, "cat"), (30, 30, 60, 60, "unicorn"))  # one of two without a partner
    data.add(4, (SIDE, SIDE), (0, 0, 30, 30, ""))
    data.prepare()
    code, text, _ = data.make(tmp_path / "bench")
    assert code == 0 and "2 cases, from 5 pictures" in text
    for reason in (module.LONG, module.ALONE, module.UNLABELLED):
        assert f"left out: 1 {reason}" in text
    made = {(Path(row["source"]).stem, row["box"]) for row in cases(tmp_path / "bench")}
    assert made == {("1", "10 10 40 40"), ("3", "0 0 30 30")}
    assert {Path(row["reference"]).stem for row in cases(tmp_path / "bench")} <= {"0", "1", "3"}


def test_boxes_end_where_their_picture_does(tmp_path, script):
    data = Data(tmp_path / "data", script)
    for number in range(3):
        data.add(number, (SIDE, 100), (10, 10, 40, 40, "cat"))
    data.prepare()
    index = data.root / "bbox/validation.parquet"
    boxes = [[[-20.0, -10.0, 30.0, 30.0]], [[40.0, 80.0, 90.0, 130.0]], [[200.0, 0.0, 230.0, 30.0]]]
    pl.read_parquet(index).with_columns(boxes=pl.Series(boxes)).write_parquet(index)
    code, text, _ = data.make(tmp_path / "bench")
    assert code == 0 and "2 cases, from 3 pictures" in text and f"left out: 1 {module.UNLABELLED}" in text
    assert {row["box"] for row in cases(tmp_path / "bench")} == {"0 0 30 30", "40 80 64 100"}


def test_damaged_pictures_are_replaced(data, tmp_path):
    for number in (3, 7, 11):
        data.file(number).write_bytes(data.file(number).read_bytes()[:90])
    save(positions(50, 50, 15), data.file(15))  # another one than was prepared
    data.file(19).unlink()
    damaged = {3, 7, 11, 15, 19}
    code, text, err = data.make(tmp_path / "all")
    assert code == 0 and "19 cases, from 24 pictures" in text and f"left out: 5 {module.DAMAGED}" in text
    assert "5 files cannot be read" in err and all(f"{number}.png" in err for number in damaged)
    used = {Path(row[name]).stem for row in cases(tmp_path / "all") for name in ("source", "reference")}
    assert not used & set(map(str, damaged))
    assert np.load(tmp_path / "all/id_list.npy").tolist() == list(range(19))
    for row in cases(tmp_path / "all"):  # files moved together
        for folder, name in (("GT_3500/{}_GT.png", "source"), ("Ref_3500/{}_ref.png", "reference")):
            assert str(number_of(pixels_of(tmp_path / "all" / folder.format(row["id"])))) == Path(row[name]).stem
    assert data.make(tmp_path / "some", "--count", 18)[0] == 0  # others take the place of those left out
    assert len(COCOImageDataset(tmp_path / "some")) == 18 and len(contents(tmp_path / "some")) == 18 * 3 + 2


def test_bench_errors(data, tmp_path):
    def refused(words, *options, out="out"):
        code, _, err = data.make(tmp_path / out, *options)
        assert code == 2 and words in err and err.splitlines()[-1].startswith("make_test_bench.py: error: "), err
        assert not (tmp_path / "out").exists() and not list(tmp_path.rglob(".partial-*"))

    for name, value in (("count", 0), ("size", 4), ("size", 5000), ("seed", -1)):
        refused(f"--{name} {value} is out of range", f"--{name}", value)
    refused("prepare it with scripts/read_bbox.py", "--split", "test")
    refused("prepare it with scripts/read_bbox.py", "--dataset_dir", tmp_path / "none")
    (tmp_path / "file").write_text("")
    refused("cannot be written to", out="file")
    assert data.make(tmp_path / "made", "--count", 2)[0] == 0
    before = contents(tmp_path / "made")
    refused("contains cases already: name another folder", out="made")
    assert contents(tmp_path / "made") == before

    index = data.root / "bbox/validation.parquet"
    table = pl.read_parquet(index)
    for labels in (pl.lit(None, pl.List(pl.String)), pl.col("label").list.eval(pl.lit("", pl.String))):
        table.with_columns(labels.alias("label")).write_parquet(index)
        refused("has no labelled box: prepare it")
    table.with_columns(pl.lit(float("nan")).repeat_by(4).repeat_by(1).alias("boxes")).write_parquet(index)
    refused(": make it again with scripts/read_bbox.py")
    table.drop("label").write_parquet(index)
    refused(": make it again with scripts/read_bbox.py")
    index.write_bytes(b"no index")
    refused(": make it again with scripts/read_bbox.py")
    table.with_columns(label=pl.format("thing of {}", "path").repeat_by(pl.col("boxes").list.len())).write_parquet(
        index
    )
    refused(f"(24 {module.ALONE}): prepare more pictures")


def test_an_outdir_with_other_things_keeps_them(data, tmp_path):
    save(positions(8, 8), tmp_path / "bench/test2017_square/a.png")
    assert data.make(tmp_path / "bench", "--count", 3)[0] == 0
    assert (tmp_path / "bench/test2017_square/a.png").exists() and len(COCOImageDataset(tmp_path / "bench")) == 3


def test_a_killed_run_leaves_no_benchmark(data, tmp_path):
    out = tmp_path / "new" / "bench"
    command = ["scripts/make_test_bench.py", "--dataset_dir", data.root, "--outdir", out, "--size", "2048"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "new").glob(".partial-*/bench/GT_3500/*")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert list((tmp_path / "new").glob(".partial-*/bench/GT_3500/*")) and not out.exists()
    assert data.make(out)[0] == 0 and len(COCOImageDataset(out)) == 24
