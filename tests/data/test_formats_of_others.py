"""scripts/read_bbox.py: annotations as other programs write them are read like those of the documents, or refused by
name."""

import json
import re
import sys

import pytest
from PIL import Image

from tests.data.annotations import listed, open_images, own, picture, table

SIZE, BOX = (200, 150), [80.0, 45.0, 120.0, 105.0]  # of every picture; YOLO's 0.5 0.5 0.2 0.4


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        picture(tmp_path / "photos/sub" / f"{i}.jpg", SIZE)
    return tmp_path


def boxes(root, script, kind, annotations, code=0):
    """All boxes and labels of the index, and the problems."""
    arguments = own(kind, root, root / "photos", annotations)
    got, out, err = script("read_bbox", *arguments, "--split", "train")
    assert got == code, err
    assert "Traceback" not in err
    if code:
        return [], [], listed(root)
    assert re.search(r"photos: 4 images found(\n|; left out: links)", out)
    rows = table(root).values()
    found = [[round(edge, 3) for edge in box] for row in rows for box in row["boxes"]]
    return found, [label for row in rows for label in row["label"]], listed(root)


def labels(root, lines, encoding="utf-8"):
    (root / "labels/sub").mkdir(parents=True)
    for i, line in enumerate(lines):
        (root / f"labels/sub/{i}.txt").write_text(line, encoding)
    return root / "labels"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_yolo_classes_as_decimals(encoding, folder, script):
    rest = " 0.5 0.5 0.2 0.4"
    lines = ["0.0" + rest, "1.0000" + rest + " 0.9\r\n", "2.000000000000000000e+00" + rest, " 1 " + rest + "\n\n"]
    found, names, problems = boxes(folder, script, "yolo", labels(folder, lines, encoding))
    assert found == [BOX] * 4 and names == ["0", "1", "2", "1"] and not problems


@pytest.mark.parametrize("word", ["0.5", "nan", "inf", "cat", "1e999"])
def test_yolo_classes_that_are_no_classes_are_refused(word, folder, script):
    line = f"{word} 0.5 0.5 0.2 0.4"
    found, _, problems = boxes(folder, script, "yolo", labels(folder, [line, *["0 0.5 0.5 0.2 0.4"] * 3]))
    assert found == [BOX] * 3
    assert problems == [("lines that cannot be read", f"{folder}/labels/sub/0.txt: {line}")]


PAIRS = " 0.45 0.4 0.55 0.4 0.5 0.5 0.46 0.6"  # keypoints
TRIPLES = " 0.45 0.4 2 0.55 0.4 1 0.5 0.5 2 0 0 0"
THREE = " 0.45 0.4 1 0.55 0.4 1 0 0 0"  # an odd count, which no polygon has


@pytest.mark.parametrize("keypoints", [TRIPLES, THREE, TRIPLES + THREE])
def test_yolo_poses_are_told_from_polygons(keypoints, folder, script):
    found, names, problems = boxes(folder, script, "yolo", labels(folder, [f"0.0 0.5 0.5 0.2 0.4{keypoints}"] * 4))
    assert found == [BOX] * 4 and names == ["0"] * 4 and not problems


def test_yolo_poses_that_may_be_polygons_are_refused_until_the_format_is_named(folder, script):
    where = labels(folder, [f"0 0.5 0.5 0.2 0.4{PAIRS}"] * 4)
    _, _, problems = boxes(folder, script, "yolo", where, code=2)
    refused = [name for kind, name in problems if "use --format yolo-polygons or yolo-pose" in kind]
    assert len(refused) == 4 and "0.txt: 0 0.5 0.5 0.2 0.4" in refused[0]
    assert boxes(folder, script, "yolo-pose", where)[0] == [BOX] * 4
    assert boxes(folder, script, "yolo-polygons", where)[0] == [[40, 60, 110, 90]] * 4


@pytest.mark.parametrize(
    "corners",
    [
        ".4 .3 .6 .3 .6 .7 .4 .7",  # an oriented box
        ".5 .3 .6 .5 .5 .7 .4 .5",  # a diamond
        ".4 .5 .5 .7 .6 .5 .5 .3 .4 .5",  # closed
        ".4 .3 .6 .7 .5 .7",
    ],
)
def test_yolo_polygons_stay_polygons(corners, folder, script):
    found, _, problems = boxes(folder, script, "yolo", labels(folder, [f"0 {corners}"] * 4))
    assert found == [BOX] * 4 and not problems


def coco(root, number=int, key=int, name="sub/{}.jpg", crowd=0, start=0):
    images = [
        {"id": key(start + i), "file_name": name.format(i), "width": number(200), "height": number(150)}
        for i in range(4)
    ]
    annotations = [
        {"id": i, "image_id": start + i, "bbox": [number(edge) for edge in (80, 45, 40, 60)], "category_id": 3}
        | ({} if crowd is None else {"iscrowd": crowd})
        for i in range(4)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": key(3), "name": "cat"}]}
    (root / "a.json").write_bytes(json.dumps(content).encode("utf-8-sig"))
    return root / "a.json"


@pytest.mark.parametrize(
    "how",
    [
        {"number": str},
        {"number": lambda n: f"{n}.0"},
        {"number": float},
        {"key": str},
        {"key": float},
        {"key": "{:012}".format},
        {"name": "sub\\{}.jpg"},
        {"name": "./sub/{}.jpg"},
        {"name": " sub/{}.jpg "},
        {"crowd": "0"},
        {"crowd": False},
        {"crowd": None},
        {"key": str, "start": 9},  # "10" beside 9: text of another length
    ],
)
def test_coco_of_other_programs(how, folder, script):
    found, names, problems = boxes(folder, script, "coco", coco(folder, **how))
    assert found == [BOX] * 4 and names == ["cat"] * 4 and not problems


def test_coco_pictures_of_one_id_are_named(folder, script):
    content = json.loads(coco(folder).read_text("utf-8-sig"))
    content["images"][1]["id"] = 0
    (folder / "a.json").write_text(json.dumps(content))
    _, _, problems = boxes(folder, script, "coco", folder / "a.json")
    assert ("pictures whose id another has, too", f"{folder}/photos/sub/0.jpg") in problems
    assert ("boxes of an unknown image_id", "annotation 1") in problems


@pytest.mark.parametrize(
    ("head", "row", "encoding"),
    [
        ("", "sub/{}.jpg,80.0,45.0,120.0,105.0\n", "utf-8"),
        ("", "sub\\{}.jpg,80,45,120,105\r\n", "utf-8-sig"),
        ("", "sub/{}.jpg;80,0;45;120;105,0;cat\n", "utf-8"),
        ("", "sub/{}.jpg\t80\t45\t120\t105\n", "utf-16"),
        ("sep=;\nFileName ; XMin;YMin;XMax;YMax\n", "sub/{}.jpg; 80;45;120;105\n;;;;\n", "utf-8-sig"),
        ("\n CLASS,Path,X1,Y1,x0,y0\n", '"a, b","sub/{}.jpg ",120,105,80,45\n,,,,,\n', "utf-8"),
    ],
)
def test_csv_of_spreadsheets(head, row, encoding, folder, script):
    beside = folder / "photos/a.csv"  # which is not worth a word
    beside.write_text(head + "".join(row.format(i) for i in range(4)), encoding)
    found, _, problems = boxes(folder, script, "csv", beside)
    assert found == [BOX] * 4 and not problems


def test_csv_problems_name_the_line(folder, script):
    (folder / "a.csv").write_text("path,x0,y0,x1,y1\n\nsub/0.jpg,80,45,120,105\nsub/1.jpg,80,45,wide,105\n")
    found, _, problems = boxes(folder, script, "csv", folder / "a.csv")
    assert found == [BOX] and ("lines that cannot be read", "line 4: sub/1.jpg,80,45,wide,105") in problems


@pytest.mark.parametrize("edges", [("80.0", "45.0", "120.0", "105.0"), ("\n 80 ", "45", "1.2e2", "105")])
def test_voc_of_other_programs(edges, folder, script):
    (folder / "xml/sub").mkdir(parents=True)
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{name}>{edge}</{name}>" for name, edge in zip(names, edges, strict=True))
    text = f"<annotation><filename>C:\\x\\0.jpg</filename><object><name> cat\n</name><bndbox>{box}</bndbox></object>"
    for i in range(4):
        (folder / f"xml/sub/{i}.XML").write_text(f"{text}</annotation>", "utf-8-sig")
    found, labels, problems = boxes(folder, script, "voc", folder / "xml")
    assert found == [BOX] * 4 and labels == ["cat"] * 4 and not problems


def test_voc_objects_without_a_box_are_named(folder, script):
    (folder / "xml/sub").mkdir(parents=True)
    box = "<bndbox><xmin>80</xmin><ymin>45</ymin><xmax>120</xmax><ymax>105</ymax></bndbox>"
    turned = "<object><name>ship</name><robndbox><cx>5</cx></robndbox></object>"
    text = f"<annotation><object><name>cat</name>{box}</object>{turned}</annotation>"
    for i in range(4):
        (folder / f"xml/sub/{i}.xml").write_text(text)
    found, _, problems = boxes(folder, script, "voc", folder / "xml")
    assert found == [BOX] * 4
    assert problems[0] == ("objects without a box", f"{folder}/xml/sub/0.xml: ship") and len(problems) == 4


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "LA"])
def test_masks_of_other_programs(mode, folder, script):
    (folder / "masks/sub").mkdir(parents=True)
    mask = Image.new("L", SIZE)
    mask.paste(255, tuple(map(int, BOX)))
    for i in range(4):
        mask.convert(mode).save(folder / f"masks/sub/{i}.PNG")
    found, _, problems = boxes(folder, script, "masks", folder / "masks")
    assert found == [BOX] * 4 and not problems


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_open_images_with_windows_line_ends(encoding, tmp_path, script):
    for i in range(3):
        picture(tmp_path / f"images/test/00{i}.jpg", SIZE)
    open_images(tmp_path, [(f"00{i}", "/m/1", 0.4, 0.3, 0.6, 0.7) for i in range(3)])
    (file,) = (tmp_path / "annotations").iterdir()
    file.write_bytes(file.read_text().replace("\n", "\r\n").encode(encoding))
    code, _, err = script("read_bbox", "--dataset_dir", tmp_path)
    assert code == 0, err
    rows = table(tmp_path, "test").values()
    assert [[round(edge, 3) for edge in box] for row in rows for box in row["boxes"]] == [BOX] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("kind", ["yolo", "voc", "masks", "csv"])
def test_linked_folders_are_read(kind, folder, script):
    """photos/sub is a link to another disk, and so is the folder of annotations."""
    (folder / "photos/sub").rename(folder / "disk")
    (folder / "photos/sub").symlink_to(folder / "disk")
    (folder / "photos/sub/again").symlink_to(folder / "photos")
    (folder / "notes").mkdir()
    (folder / "annotations").mkdir()
    (folder / "annotations/sub").symlink_to(folder / "notes")
    (folder / "a.csv").write_text("".join(f"sub/{i}.jpg,80,45,120,105\n" for i in range(4)))
    mask = Image.new("L", SIZE)
    mask.paste(255, tuple(map(int, BOX)))
    x = "<object><bndbox><xmin>80</xmin><ymin>45</ymin><xmax>120</xmax><ymax>105</ymax></bndbox></object>"
    for i in range(4):
        mask.save(folder / f"notes/{i}.png")
        (folder / f"notes/{i}.txt").write_text("0 0.5 0.5 0.2 0.4")
        (folder / f"notes/{i}.xml").write_text(f"<annotation>{x}</annotation>")
    found, _, problems = boxes(folder, script, kind, folder / ("a.csv" if kind == "csv" else "annotations"))
    assert found == [BOX] * 4
    assert problems == [("links that lead back to a folder above them", f"{folder}/photos/sub/again")]
