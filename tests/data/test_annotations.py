"""Annotations of every format to the index and the published txt files: scripts/read_bbox.py."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ldm.data.index import SPLITS, BoxIndex
from ldm.data.prepare.annotations import CHUNK, chunked_map
from ldm.images import ORIENTATION
from tests.conftest import GOLDEN, ROOT

PUBLISHED = json.loads((GOLDEN / "eval_read_bbox.json").read_text())
CSV = {split: f"{name}-annotations-bbox.csv" for split, name in zip(SPLITS, ("oidv6-train", *SPLITS[1:]), strict=True)}


def picture(path, size, orientation=None):
    """A black picture that is `size` once upright."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1] if orientation == 6 else size)
    if orientation:
        image.getexif()[ORIENTATION] = orientation
    image.save(path, exif=image.getexif())


def open_images(root, rows, split="test"):
    """annotations/<csv of the split> of rows (id, label, x0, y0, x1, y1)."""
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


# ------------------------------------------------------------------------------------------ the published layout


@pytest.fixture
def published(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name, content in PUBLISHED["csv"].items():
        (tmp_path / "annotations" / name).write_text(content)
    for name, size in PUBLISHED["image_sizes_wh"].items():
        picture(tmp_path / "images" / name, size)
    return tmp_path


def kept(least, most):
    """The txt files, from the golden file's annotations, by the published rule."""
    sizes = {Path(name).stem: (Path(name).parent, size) for name, size in PUBLISHED["image_sizes_wh"].items()}
    files = {}
    for content in PUBLISHED["csv"].values():
        for row in csv.DictReader(content.splitlines()):
            x0, y0, x1, y1 = (float(row[name]) for name in ("XMin", "YMin", "XMax", "YMax"))
            if row["ImageID"] in sizes and least <= (x1 - x0) * (y1 - y0) <= most:
                folder, (width, height) = sizes[row["ImageID"]]
                line = f"{x0 * width!r} {y0 * height!r} {x1 * width!r} {y1 * height!r}\n"
                name = f"{folder}/{row['ImageID']}.txt"
                files[name] = files.get(name, "") + line
    return files


def test_txt_files_equal_the_published_ones(published, script):
    assert kept(0.02, 0.8) == PUBLISHED["written"]
    for _ in range(2):
        code, out, _ = script("read_bbox", "--dataset_dir", published)
        assert code == 0 and txt(published) == PUBLISHED["written"]
        assert "train.parquet: 3 pictures, 8 boxes" in out
        assert {Path(name).name for _, name in listed(published)} == {"a9.jpg", "zz"}


def test_other_areas_leave_nothing_of_an_earlier_run(published, script):
    script("read_bbox", "--dataset_dir", published)
    code, _, _ = script("read_bbox", "--dataset_dir", published, "--min_area", 0.2, "--max_area", 0.5)
    expected = kept(0.2, 0.5)
    assert code == 0 and 0 < len(expected) < len(PUBLISHED["written"])
    assert txt(published) == expected


def test_a_split_left_without_a_box_loses_its_index(published, script):
    script("read_bbox", "--dataset_dir", published)
    assert {Path(name).parts[0] for name in kept(0.5, 0.8)} == {"train_0"}
    code, _, _ = script("read_bbox", "--dataset_dir", published, "--min_area", 0.5)
    assert code == 0 and txt(published) == kept(0.5, 0.8)
    assert [path.name for path in (published / "bbox").glob("*.parquet")] == ["train.parquet"]


def test_parquet_and_txt_hold_the_same(published, script):
    script("read_bbox", "--dataset_dir", published)
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        rows = table(published, split)
        assert len(rows) == count
        for path, row in rows.items():
            _, folder, name = Path(path).parts
            assert row["boxes"] == numbers(PUBLISHED["written"][f"{folder}/{Path(name).stem}.txt"])
            assert [row["width"], row["height"]] == PUBLISHED["image_sizes_wh"][f"{folder}/{name}"]
        indices = [BoxIndex(published, split)]
        (published / "bbox" / f"{split}.parquet").unlink()
        indices.append(BoxIndex(published, split))
        one, other = (
            {path: boxes.tolist() for path, boxes in map(index.__getitem__, range(count))} for index in indices
        )
        assert one == other and all(path.is_file() for path in one)


def test_labels_are_names_where_there_are_names(published, script):
    script("read_bbox", "--dataset_dir", published)
    assert table(published)["images/train_f/a4.jpg"]["label"] == ["/m/04"]
    (published / "annotations" / "class-descriptions-boxable.csv").write_text('/m/01,7\n/m/04,"Cat, tabby"\n')
    script("read_bbox", "--dataset_dir", published)
    labels = {Path(path).stem: row["label"] for path, row in table(published).items()}
    assert labels == {"a1": ["7"] * 4, "a3": ["/m/03"] * 3, "a4": ["Cat, tabby"]}


@pytest.mark.parametrize(
    "content", [b"", b"/m/04\n", b"1,2\n", b"/m/04,Cat\n/m/01,a,b\n", b"/m/04,caf\xe9\n", b'/m/04,"Cat\n', None]
)
def test_class_descriptions_that_are_none(content, published, script):
    names = published / "annotations" / "class-descriptions-boxable.csv"
    names.mkdir() if content is None else names.write_bytes(content)
    code, _, err = script("read_bbox", "--dataset_dir", published)
    assert code == 0 or (code == 2 and err.count("\n") == 1 and str(names) in err)


def test_pictures_of_other_extensions(tmp_path, script):
    names = ["a.JPG", "b.png", "c.jpeg", "d.Webp"]
    for name in names:
        picture(tmp_path / "images" / "test" / name, (40, 30))
    (tmp_path / "images" / "test" / "e.md").write_text("no picture")
    open_images(tmp_path, [(name[0], "/m/1", 0.25, 0.2, 0.75, 0.8) for name in [*names, "e"]])
    code, out, _ = script("read_bbox", "--dataset_dir", tmp_path)
    assert code == 0 and "1 annotated pictures without a file (e)" in out
    index = BoxIndex(tmp_path, "test")
    boxes = {index[i][0].name: index[i][1].tolist() for i in range(len(index))}
    assert boxes == {name: [[10, 6, 30, 24]] for name in names}
    assert set(txt(tmp_path)) == {f"test/{name[0]}.txt" for name in names}


# ------------------------------------------------------------------------------------------ what is wrong

WRONG = {  # id -> its box, on a picture of 100 x 50, and the problem
    "good": ((0.1, 0.1, 0.6, 0.6), None),
    "rounded": ((0.5, 0.5, 1.001, 1.001), None),
    "small": ((0.1, 0.1, 0.2, 0.2), None),
    "large": ((0, 0, 1, 1), None),
    "gone": ((0.1, 0.1, 0.6, 0.6), "annotated pictures without a file"),
    "text": ((0.1, 0.1, 0.6, 0.6), "pictures that cannot be read"),
    "outside": ((1.2, 0.1, 1.6, 0.6), "boxes outside their picture"),
    "inverted": ((0.6, 0.1, 0.1, 0.6), "boxes inverted or empty"),
    "beyond": ((-0.3, 0.2, 0.5, 0.6), "boxes cut off at the edge of their picture"),
    "word": (("abc", 0.2, 0.5, 0.6), "boxes that are no numbers"),
    "blank": ((0.1, "", 0.5, 0.6), "boxes that are no numbers"),
    "infinite": ((0.1, 0.2, "inf", 0.6), "boxes that are no numbers"),
}
RIGHT = {"good": [[10, 5, 60, 30]], "rounded": [[50, 25, 100, 50]], "beyond": [[0, 10, 50, 30]]}


def wrong_pictures(folder):
    for name in {*WRONG, "unnamed"} - {"gone", "text"}:
        picture(folder / f"{name}.jpg", (100, 50))
    (folder / "text.jpg").write_text("no picture")


def check_wrong(root, out, split, problems):
    """The problems are counted and listed, and the other boxes are there."""
    found = listed(root)
    assert (
        len(found) == len(problems)
        and "2 boxes left out: their share of the picture's area is below 0.02 or above 0.8" in out
    )
    for name, kind in problems.items():
        assert sum(kind == other and name in where for other, where in found) == 1, name
        assert f"{list(problems.values()).count(kind)} {kind} (" in out
    boxes = {Path(path).stem: row["boxes"] for path, row in table(root, split).items()}
    assert boxes.keys() == RIGHT.keys()
    for name, expected in RIGHT.items():
        np.testing.assert_allclose(boxes[name], expected, atol=1e-9)


def test_what_is_wrong_is_counted_and_listed(tmp_path, script):
    wrong_pictures(tmp_path / "images" / "test")
    open_images(tmp_path, [(name, "/m/1", *box) for name, (box, _) in WRONG.items()])
    code, out, _ = script("read_bbox", "--dataset_dir", tmp_path)
    assert code == 0
    problems = {name: kind for name, (_, kind) in WRONG.items() if kind}
    check_wrong(tmp_path, out, "test", problems | {"unnamed": "pictures without an annotation"})
    assert set(txt(tmp_path)) == {f"test/{name}.txt" for name in RIGHT}


def test_wrong_boxes_in_pixels(tmp_path, script):
    wrong_pictures(tmp_path / "photos")
    scales = (100, 50, 100, 50)
    rows = (
        [name, *(edge if isinstance(edge, str) else edge * scale for edge, scale in zip(box, scales, strict=True))]
        for name, (box, _) in WRONG.items()
    )
    (tmp_path / "a.csv").write_text("".join(f"{name}.jpg,{x0},{y0},{x1},{y1}\n" for name, x0, y0, x1, y1 in rows))
    code, out, _ = script(
        "read_bbox", *own("csv", tmp_path, tmp_path / "photos", tmp_path / "a.csv"), "--split", "train"
    )
    assert code == 0
    problems = {name: kind for name, (_, kind) in WRONG.items() if kind}
    unreadable = dict.fromkeys(("word", "blank"), "lines that cannot be read")
    missing = {"gone": "pictures that cannot be read", "unnamed": "pictures without an annotation"}
    check_wrong(tmp_path, out, "train", problems | unreadable | missing)


def test_nothing_left(tmp_path, script):
    wrong_pictures(tmp_path / "images" / "test")
    open_images(tmp_path, [("text", "/m/1", 0.1, 0.1, 0.6, 0.6), ("large", "/m/1", 0, 0, 1, 1)])
    code, _, err = script("read_bbox", "--dataset_dir", tmp_path)
    assert code == 2 and err.startswith(
        "read_bbox.py: error: no box is left to train on, nothing is changed; openimages means"
    )
    assert not txt(tmp_path) and not list((tmp_path / "bbox").glob("*.parquet"))


# ------------------------------------------------------------------------------------------ other formats

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
    """Writes OWN's boxes in a format -> what --annotations names."""
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


@pytest.fixture
def photos(tmp_path):
    for name, (size, _) in OWN.items():
        picture(tmp_path / "data" / "photos" / name, size, 6 if name == "turned.jpg" else None)
    return tmp_path / "data" / "photos"


@pytest.mark.parametrize(
    "kind", ["coco", "yolo", "polygons", "voc", "csv", "csv label", "csv header", "csv header label", "masks"]
)
def test_every_format_gives_the_same_boxes(kind, photos, tmp_path, script):
    annotations = annotate(kind, tmp_path / "annotations")
    option = {"polygons": "yolo"}.get(kind, kind.split()[0])
    for root, inside in ((photos.parent, True), (tmp_path / "elsewhere", False)):
        code, _, _ = script("read_bbox", *own(option, root, photos, annotations), "--split", "train")
        assert code == 0
        assert len(listed(root)) == (kind == "coco")  # the crowd
        rows = table(root)
        names = {str(Path("photos") / name) if inside else str(photos / name): name for name in OWN}
        assert rows.keys() == names.keys()
        for path, row in rows.items():
            size, boxes = OWN[names[path]]
            if kind == "masks":
                edges = np.array(boxes)
                boxes = [(*edges[:, :2].min(0), *edges[:, 2:].max(0))]
            assert (row["width"], row["height"]) == size
            np.testing.assert_allclose(row["boxes"], boxes, atol=2e-4 if option == "yolo" else 1e-9)
            assert set(row["label"]) == {
                "cat" if kind in ("coco", "voc", "yolo", "polygons") or "label" in kind else ""
            }
        index = BoxIndex(root, "train")
        assert {index[i][0] for i in range(len(index))} == {photos / name for name in OWN}
        assert all(index[i][0].is_file() for i in range(len(index)))


def test_relative_folders(photos, tmp_path, script, monkeypatch):
    """What the index calls relative is so to the dataset folder, wherever the script was started."""
    annotate("voc", tmp_path / "data" / "xml")
    monkeypatch.chdir(photos.parent.parent)
    code, _, _ = script("read_bbox", *own("voc", "data", "data/photos", "data/xml"), "--split", "test")
    assert code == 0
    monkeypatch.chdir(ROOT)
    index = BoxIndex(photos.parent, "test")
    assert {index[i][0] for i in range(len(index))} == {photos / name for name in OWN}


# ------------------------------------------------------------------------------------------ splits


@pytest.fixture
def twelve(tmp_path):
    for i in range(12):
        picture(tmp_path / "photos" / f"{i}.png", (20, 20))
    (tmp_path / "a.csv").write_text("".join(f"{i}.png,5,5,15,15\n" for i in range(12)))
    return own("csv", tmp_path, tmp_path / "photos", tmp_path / "a.csv")


def splits(root):
    return {split: set(table(root, split)) for split in SPLITS if (root / "bbox" / f"{split}.parquet").exists()}


def test_hold_out(twelve, tmp_path, script):
    found = []
    for _ in range(2):
        code, _, _ = script("read_bbox", *twelve, "--validation", 0.25)
        found.append(splits(tmp_path))
        assert code == 0 and {split: len(paths) for split, paths in found[-1].items()} == {"train": 9, "validation": 3}
    assert found[0] == found[1] and found[0]["train"] | found[0]["validation"] == {f"photos/{i}.png" for i in range(12)}


def test_a_split_by_name_and_no_hold_out(twelve, tmp_path, script):
    everything = {f"photos/{i}.png" for i in range(12)}
    assert script("read_bbox", *twelve, "--split", "test")[0] == 0
    assert splits(tmp_path) == {"test": everything}
    shutil.rmtree(tmp_path / "bbox")
    assert script("read_bbox", *twelve, "--validation", 0)[0] == 0
    assert splits(tmp_path) == {"train": everything}


def test_no_picture_stays_held_out_from_an_earlier_run(twelve, tmp_path, script):
    script("read_bbox", *twelve, "--validation", 0.25)
    script("read_bbox", *twelve, "--validation", 0)
    found = splits(tmp_path)
    assert len(found["train"]) == 12 and not found.get("validation")


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan", "half"])
def test_shares_that_are_none(value, twelve, script):
    code, _, err = script("read_bbox", *twelve, "--validation", value)
    assert code == 2 and "--validation" in err.splitlines()[-1]


# ------------------------------------------------------------------------------------------ bad input

IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
BOX = {"id": 5, "image_id": 1, "bbox": [10, 10, 50, 50]}
JUNK = bytes(range(256)) * 20
FOLDER = object()


def coco(images=IMAGES, annotations=(BOX,), **more):
    return {"images": images, "annotations": [*annotations], **more}


def xml(content="", head="", edges=("10", "10", "60", "60")):
    box = "".join(
        f"<{name}>{edge}</{name}>" for name, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
    )
    return f"{head}<annotation>{content}<object><bndbox>{box}</bndbox></object></annotation>"


BAD = {  # format -> what --annotations holds: a file's content (dict: as JSON), None: nothing, FOLDER: an empty folder
    "coco": [
        *(
            None,
            FOLDER,
            b"",
            JUNK,
            "[]",
            "null",
            "7",
            '"x"',
            "{",
            b"[" * 200_000,
            '{"images": []}',
            '{"annotations": []}',
        ),
        coco("x"),
        coco([7]),
        coco([{"id": [1], "file_name": "a.jpg"}]),
        coco([{"file_name": "a.jpg"}]),
        coco([{"id": 1}]),
        coco(annotations=[7]),
        coco(annotations=[{"bbox": [1, 2, 3, 4]}]),
        coco(annotations=[BOX | {"bbox": "abcd"}]),
        coco(annotations=[BOX | {"bbox": [None, 1, 2, 3]}]),
        coco(annotations=[BOX | {"bbox": True}]),
        coco(annotations=[BOX | {"bbox": [10**400, 1, 2, 3]}]),
        coco(annotations=[BOX | {"category_id": [1]}]),
        coco(categories={"a": 1}),
        coco([], []),
    ],
    "csv": [
        *(None, FOLDER, b"", "\n\n", JUNK, b"\0" * 500, "a.jpg\n", "a.jpg,1,2,3\n", "a.jpg;1;2;3;4\n"),
        *("path,x0,y0,x1,y1\n", b"caf\xe9.jpg,1,2,3,4\n"),
    ],
    "yolo": [None, FOLDER, b""],
    "voc": [None, FOLDER, b""],
    "masks": [None, FOLDER, b""],
}


@pytest.fixture
def two(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "photos" / name, (100, 80))
    return tmp_path / "photos"


def put(path, content):
    if content is FOLDER:
        path.mkdir()
    elif content is not None:
        text = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(("kind", "number"), [(kind, i) for kind, bad in BAD.items() for i in range(len(bad))])
def test_annotations_that_cannot_be_used(kind, number, two, tmp_path, script):
    put(tmp_path / "annotations", BAD[kind][number])
    code, _, err = script("read_bbox", *own(kind, tmp_path, two, tmp_path / "annotations"))
    assert code == 2 and err.startswith("read_bbox.py: error: ") and err.count("\n") == 1
    assert str(tmp_path / "annotations") in err or "no box is left" in err
    assert not list(tmp_path.glob("bbox/*.parquet"))


SOME_BAD = [  # format, annotations of which one box of a.jpg can be used, what is named
    ("coco", coco(annotations=[BOX, BOX | {"image_id": 77}]), "annotation 5"),
    ("coco", coco(annotations=[BOX, BOX | {"image_id": 2, "bbox": [1, 2, 3]}]), "b.jpg"),
    ("coco", coco(annotations=[BOX, BOX | {"image_id": 2, "bbox": None}]), "b.jpg"),
    ("coco", coco(annotations=[BOX, BOX | {"image_id": 2, "bbox": [float("nan"), 1, 2, 3]}]), "b.jpg"),
    ("coco", coco([IMAGES[0], IMAGES[1] | {"width": 80, "height": 100}], [BOX, BOX | {"image_id": 2}]), "b.jpg"),
    ("coco", coco([IMAGES[0], IMAGES[1] | {"width": [8], "height": "x"}], [BOX, BOX | {"image_id": 2}]), "b.jpg"),
    ("coco", coco([IMAGES[0], {"id": 2, "file_name": "b\0.jpg"}], [BOX, BOX | {"image_id": 2}]), "b\\x00.jpg"),
    ("coco", coco([IMAGES[0], {"id": 2, "file_name": "b" * 5000}], [BOX, BOX | {"image_id": 2}]), "b" * 5000),
    ("coco", coco([IMAGES[0], {"id": 2, "file_name": ""}], [BOX, BOX | {"image_id": 2}]), "photos"),
    ("csv", "a.jpg,10,10,60,60\nb.jpg,x,10,60,60\n", "b.jpg"),
    ("csv", "a.jpg,10,10,60,60\nb.jpg,10\n", "b.jpg"),
    ("csv", 'a.jpg,10,10,60,60\n"b.jpg,1,2,3,4\n', "b.jpg"),
    ("csv", "a.jpg,10,10,60,60\n,10,10,60,60\n", "photos"),
    ("csv", "a.jpg,10,10,60,60\n/etc/passwd,10,10,60,60\n", "/etc/passwd"),
    ("csv", "a.jpg,10,10,60,60\nb.jpg,1e400,nan,inf,\n", "b.jpg"),
    *(("voc", {"a.xml": xml(), "b.xml": bad}, "b") for bad in ("", "<a>", JUNK, xml("&e;"), FOLDER)),
    *(("voc", {"a.xml": xml(), "b.xml": xml(edges=edges)}, "b") for edges in (("x",) * 4, ("nan",) * 4, ("",) * 4)),
    *(
        ("voc", {"a.xml": xml(), "b.xml": xml(head=f'<?xml version="1.0" encoding="{name}"?>')}, "b.xml")
        for name in ("foo", "utf-7", "hex")
    ),
    ("voc", {"a.xml": xml()}, "b.jpg"),
    ("voc", {"a.xml": xml(), "q.xml": xml()}, "q.xml"),
    *(
        ("yolo", {"a.txt": f"0 .5 .5 .4 .4\n{line}\n"}, "a.txt")
        for line in ("0", "0 x .5 .5 .5", "cat .5 .5 .4 .4", "0 .1 .1 .2 .2 .3 .3 .4", "9" * 5000 + " .5 .5 .4 .4")
    ),
    ("yolo", {"a.txt": "0 .5 .5 .4 .4\n0 nan .5 .4 1e999\n"}, "a.jpg"),
    ("yolo", {"a.txt": "0 .5 .5 .4 .4\n", "b.txt": JUNK}, "b.txt"),
    ("yolo", {"a.txt": "0 .5 .5 .4 .4\n", "b.txt": FOLDER}, "b"),
    ("yolo", {"a.txt": "0 .5 .5 .4 .4\n", "classes.txt": FOLDER}, "classes.txt"),
    ("yolo", {"a.txt": "0 .5 .5 .4 .4\n", "classes.txt": b"caf\xe9\n"}, "classes.txt"),
    ("masks", {"a.png": "good", "b.png": JUNK}, "b.png"),
    ("masks", {"a.png": "good", "b.png": FOLDER}, "b.jpg"),
    ("masks", {"a.png": "good", "b.png": "black"}, "b.png"),
    ("masks", {"a.png": "good", "b.png": "narrow"}, "b.png"),
]


@pytest.mark.parametrize("number", range(len(SOME_BAD)))
def test_annotations_of_which_some_are_bad(number, two, tmp_path, script):
    """What is bad is listed, and the rest is used; or one sentence names the file."""
    kind, content, name = SOME_BAD[number]
    annotations = tmp_path / "annotations"
    if kind in ("coco", "csv"):
        put(annotations, content)
    else:
        annotations.mkdir()
        for file, text in content.items():
            if text in ("good", "black", "narrow"):
                mask = Image.new("L", (10, 80) if text == "narrow" else (100, 80))
                mask.paste(0 if text == "black" else 255, (0, 0, 50, 50))
                mask.save(annotations / file)
            else:
                put(annotations / file, text)
    code, _, err = script("read_bbox", *own(kind, tmp_path, two, annotations), "--split", "train")
    if code:
        assert code == 2 and err.startswith("read_bbox.py: error: ") and err.count("\n") == 1
        assert str(annotations) in err
    else:
        assert "photos/a.jpg" in table(tmp_path)
        assert any(name in where for _, where in listed(tmp_path)) or name == "classes.txt"


@pytest.mark.parametrize(
    "image", [{"width": 5, "height": 5}, {"file_name": 3, "width": 5, "height": 5}, {"file_name": None}, {}]
)
@pytest.mark.parametrize("annotation", [None, {"iscrowd": 1}, {"bbox": []}])
def test_a_coco_picture_without_a_name(image, annotation, two, tmp_path, script):
    annotations = [BOX] if annotation is None else [BOX, {"image_id": 2, **annotation}]
    put(tmp_path / "a.json", coco([IMAGES[0], {"id": 2, **image}], annotations))
    code, _, err = script("read_bbox", *own("coco", tmp_path, two, tmp_path / "a.json"), "--split", "train")
    assert code == 0 or (code == 2 and err.count("\n") == 1 and "a.json" in err)


@pytest.mark.parametrize("where", ["file_name", "label"])
def test_lone_surrogates(where, two, tmp_path, script):
    """JSON can spell what no file of UTF-8 can hold."""
    images = [IMAGES[0], {"id": 2, "file_name": "\ud800.jpg"}] if where == "file_name" else IMAGES
    annotations = [BOX | {"category_id": 1}, BOX | {"image_id": images[1]["id"]}]
    put(tmp_path / "a.json", coco(images, annotations, categories=[{"id": 1, "name": "\ud800"}] * (where == "label")))
    code, _, err = script("read_bbox", *own("coco", tmp_path, two, tmp_path / "a.json"), "--split", "train")
    assert code == 0 or (code == 2 and err.count("\n") == 1 and "a.json" in err)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
@pytest.mark.parametrize("kind", ["openimages", "voc"])
def test_file_names_that_are_no_utf8(kind, two, tmp_path, script):
    if kind == "openimages":
        shutil.copytree(two, tmp_path / "images" / "test")
        (tmp_path / "images" / "test" / os.fsdecode(b"\xff.jpg")).write_bytes((two / "a.jpg").read_bytes())
        open_images(tmp_path, [("a", "/m/1", 0.1, 0.1, 0.6, 0.6)])
        code, _, err = script("read_bbox", "--dataset_dir", tmp_path, "--split", "test")
    else:
        (tmp_path / "annotations").mkdir()
        for stem in ("a", os.fsdecode(b"\xff")):
            (two / f"{stem}.jpg").write_bytes((two / "a.jpg").read_bytes())
            (tmp_path / "annotations" / f"{stem}.xml").write_text(xml())
        code, _, err = script("read_bbox", *own(kind, tmp_path, two, tmp_path / "annotations"), "--split", "test")
    assert code == 0 or (code == 2 and err.count("\n") == 1)


@pytest.mark.parametrize(
    "content",
    [
        *(None, FOLDER, b"", JUNK, b"\0" * 500, "<html>404</html>", "ImageID,LabelName\na,/m/1\n"),
        *("ImageID,LabelName,XMin,XMax,YMin,YMax\n", b"ImageID,LabelName,XMin,XMax,YMin,YMax\n\xe9,/m/1,.1,.6,.1,.6\n"),
    ],
)
def test_open_images_annotations_that_cannot_be_used(content, tmp_path, script):
    picture(tmp_path / "images" / "test" / "a.jpg", (20, 20))
    (tmp_path / "annotations").mkdir()
    put(tmp_path / "annotations" / CSV["test"], content)
    code, _, err = script("read_bbox", "--dataset_dir", tmp_path)
    assert code == 2 and err.startswith("read_bbox.py: error: ") and err.count("\n") == 1
    assert CSV["test"] in err or "no box is left" in err


def test_folders_and_options_that_do_not_fit(published, two, tmp_path, script):
    for options, words in (
        (("--dataset_dir", tmp_path / "none"), str(tmp_path / "none")),
        (("--dataset_dir", published, "--images", two), "--format"),
        (("--format", "coco", "--dataset_dir", tmp_path, "--annotations", two), "--images and --annotations"),
        (("--format", "voc", "--dataset_dir", tmp_path, "--images", two), "--images and --annotations"),
        (own("voc", tmp_path, tmp_path / "none", two), str(tmp_path / "none")),
        (own("yolo", tmp_path, two / "a.jpg", two), str(two / "a.jpg")),
    ):
        code, _, err = script("read_bbox", *options)
        assert code == 2 and err.count("\n") == 1 and words in err, options
    (two / "a.csv").write_text("a.jpg,10,10,60,60\n")
    code, _, err = script("read_bbox", *own("csv", two / "b.jpg", two, two / "a.csv"))
    assert code == 2 and err.count("\n") == 1 and str(two / "b.jpg") in err


@pytest.mark.parametrize("folder", ["data [1]", "50% * of {it}?", "Über 絵"])
def test_folders_of_any_name(folder, published, tmp_path, script):
    root = tmp_path / folder
    root.mkdir()
    for name in ("annotations", "images"):
        shutil.copytree(published / name, root / name)
    code, _, err = script("read_bbox", "--dataset_dir", root)
    assert code == 0, err
    assert len(BoxIndex(root, "train")) == 3
    (root / "own.csv").write_text("images/test/t1.jpg,10,10,300,300\n")
    code, _, err = script("read_bbox", *own("csv", root, root, root / "own.csv"), "--split", "test")
    assert code == 0 and len(BoxIndex(root, "test")) == 1


# ------------------------------------------------------------------------------------------ processes


def dies_of_sigterm(chunk):
    return [signal.getsignal(signal.SIGTERM) == signal.SIG_DFL for _ in chunk]


def test_helper_processes_die_of_sigterm():
    """At once, and not when Python next runs a handler: one that waits for a lock would never, and its parent hang."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as every script does
    try:
        assert all(chunked_map(dies_of_sigterm, [[i] for i in range(8)], CHUNK + 1, "items"))
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


COUNT = 3000


def started(root):
    command = [sys.executable, "scripts/read_bbox.py", "--dataset_dir", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended(process):
    """-> its exit code. A run that hangs fails here."""
    try:
        return process.wait(timeout=30)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A data set of many pictures, and what an undisturbed run makes of it."""
    root = tmp_path_factory.mktemp("many") / "data"
    picture(root / "images" / "train_0" / "00000.jpg", (40, 30))
    data = (root / "images" / "train_0" / "00000.jpg").read_bytes()
    (root / "images" / "train_1").mkdir()
    rows = []
    for i in range(COUNT):
        (root / "images" / f"train_{i % 2}" / f"{i:05}.jpg").write_bytes(data)
        rows += [(f"{i:05}", "/m/1", i / COUNT / 2, 0.1, i / COUNT / 2 + 0.3, 0.2 + k / 10) for k in (1, 2, 3)]
    open_images(root, rows, "train")
    assert ended(started(root)) == 0
    result = txt(root), table(root)
    shutil.rmtree(root / "bbox")
    assert len(result[0]) == COUNT and len(result[1]) == COUNT
    return root, result


def until(root, has_come):
    """Runs read_bbox until has_come(its new hidden folders) or its end -> the process."""
    bbox = root / "bbox"
    old = set(bbox.glob(".partial-*"))
    process = started(root)
    while process.poll() is None and not has_come([path for path in bbox.glob(".partial-*") if path not in old]):
        time.sleep(0.0005)
    return process


@pytest.mark.integration
def test_kill_in_the_middle(many):
    root, (files, rows) = many
    bbox = root / "bbox"
    moments = {
        "the first folder is being written": lambda new: any(list(path.glob("train_0/*")) for path in new),
        "one folder is there": lambda new: (bbox / "train_0").exists(),
        "the second is being written": lambda new: any(list(path.glob("train_1/*")) for path in new),
        "both are there": lambda new: any(list(path.glob("*.parquet")) for path in new),
    }
    alive = {}
    for moment, has_come in moments.items():
        process = until(root, has_come)
        alive[moment] = process.poll() is None
        process.kill()
        process.wait()
        assert txt(root).items() <= files.items(), moment
        if (bbox / "train.parquet").exists():
            assert table(root) == rows, moment
        assert {path.name for path in bbox.glob("[!.]*")} <= {"train_0", "train_1", "train.parquet", "problems.csv"}
    assert sum(alive.values()) >= 3, alive
    assert ended(started(root)) == 0
    assert txt(root) == files and table(root) == rows


@pytest.mark.integration
def test_a_stopped_run_leaves_nothing_hidden(many):
    root, (files, _) = many
    old = set((root / "bbox").glob(".*"))
    process = until(root, lambda new: any(list(path.glob("train_0/*")) for path in new))
    process.terminate()
    assert ended(process) == 143
    assert set((root / "bbox").glob(".*")) <= old
    assert txt(root).items() <= files.items()


# ------------------------------------------------------------------------------------ what users trip over


def test_a_run_that_keeps_nothing_changes_nothing(two, tmp_path, script):
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\nb.jpg,10,10,60,60\n")
    words = own("csv", tmp_path, two, tmp_path / "a.csv")
    assert script("read_bbox", *words)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("bbox/*.parquet")}
    for change in (("--images", tmp_path), ("--min_area", 0.7), ("--format", "masks")):
        assert script("read_bbox", *words, *change)[0] == 2
        assert {path: path.read_bytes() for path in tmp_path.glob("bbox/*.parquet")} == before


def test_pictures_in_two_splits_are_told(two, tmp_path, script):
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\nb.jpg,10,10,60,60\n")
    words = own("csv", tmp_path, two, tmp_path / "a.csv")
    script("read_bbox", *words)
    _, out, _ = script("read_bbox", *words, "--split", "train")
    assert "warning: 1 of these pictures are in validation.parquet too" in out


def test_a_folder_for_the_index_has_to_be_named(two, tmp_path, script):
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\n")
    code, _, err = script("read_bbox", "--format", "csv", "--images", two, "--annotations", tmp_path / "a.csv")
    assert code == 2 and "needs --dataset_dir" in err


@pytest.mark.parametrize(
    ("header", "row", "fits"),
    [
        ("path,x0,y0,x1,y1", "a.jpg,10,20,60,70", True),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.jpg,100,80,dog,10,20,60,70", True),
        ("ymax;xmax;ymin;xmin;image", "70;60;20;10;a.jpg", True),
        ("path,x,y,width,height", "a.jpg,10,20,50,50", False),
    ],
)
def test_a_first_row_names_the_columns(header, row, fits, two, tmp_path, script):
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    code, _, err = script("read_bbox", *own("csv", tmp_path, two, tmp_path / "a.csv"), "--split", "train")
    if fits:
        assert code == 0 and table(tmp_path)["photos/a.jpg"]["boxes"] == [[10, 20, 60, 70]]
    else:
        assert code == 2 and "names no x0" in err


@pytest.mark.parametrize("line", ["\n", ",x,/m/1,1,0.1,0.5,0.1,0.5,0,0,0,0,0\n"])
def test_a_row_without_an_id_is_counted(line, tmp_path, script):
    picture(tmp_path / "images/test/a.jpg", (100, 50))
    csv = open_images(tmp_path, [("a", "/m/1", 0.1, 0.1, 0.6, 0.6)])
    path = next(tmp_path.glob("annotations/test*.csv")) if csv is None else csv
    path.write_text(path.read_text() + line)
    code, out, _ = script("read_bbox", "--dataset_dir", tmp_path)
    assert code == 0 and "1 pictures, 1 boxes" in out and "1 rows without an ImageID" in out


def test_two_pictures_of_one_name_are_told(tmp_path, script):
    for name in ("a.jpg", "a.png"):
        picture(tmp_path / "photos" / name, (100, 80))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .4 .4\n")
    _, out, _ = script(
        "read_bbox", *own("yolo", tmp_path, tmp_path / "photos", tmp_path / "labels"), "--split", "train"
    )
    assert "1 files of the same name as another" in out


def test_what_is_held_out_stays_so(tmp_path, script):
    """In any order, and with more pictures, those that were held out are among those that are."""
    for i in range(30):
        picture(tmp_path / f"photos/{i:02}.jpg", (100, 80))
    held = []
    for names in (range(20), reversed(range(20)), range(30)):
        (tmp_path / "a.csv").write_text("".join(f"{i:02}.jpg,10,10,60,60\n" for i in names))
        words = own("csv", tmp_path, tmp_path / "photos", tmp_path / "a.csv")
        assert script("read_bbox", *words, "--validation", 0.3)[0] == 0
        held.append(set(table(tmp_path, "validation")))
    assert held[0] == held[1] and len(held[0]) == 6 and len(held[2]) == 9
    assert held[0] != {f"photos/{i:02}.jpg" for i in range(6)}
    assert len(held[0] & held[2]) >= 4


def test_shards_of_an_earlier_index_are_told(two, tmp_path, script):
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\n")
    words = [*own("csv", tmp_path, two, tmp_path / "a.csv"), "--validation", 0]
    code, out, _ = script("read_bbox", *words, "--shards", 5)
    assert code == 0 and "1 shards" in out
    assert "earlier index" not in script("read_bbox", *words)[1]
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\nb.jpg,10,10,60,60\n")
    assert "those of train are of an earlier index" in script("read_bbox", *words)[1]
