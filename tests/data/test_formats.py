"""scripts/read_bbox.py: every format gives the same boxes, and bad annotations are reported."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.index import BoxIndex
from tests.conftest import ROOT
from tests.data.annotations import CSV, OWN, annotate, listed, open_images, own, picture, table


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
    """Paths in the index are relative to the dataset folder, not to the folder where the script was started."""
    annotate("voc", tmp_path / "data" / "xml")
    monkeypatch.chdir(photos.parent.parent)
    code, _, _ = script("read_bbox", *own("voc", "data", "data/photos", "data/xml"), "--split", "test")
    assert code == 0
    monkeypatch.chdir(ROOT)
    index = BoxIndex(photos.parent, "test")
    assert {index[i][0] for i in range(len(index))} == {photos / name for name in OWN}


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
    """Bad entries are listed and the others used, or one sentence names the file."""
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
    """JSON can spell characters that UTF-8 cannot encode."""
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
