"""scripts/read_bbox.py: the published layout, problems, splits, and a second run."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from ldm.data.index import SPLITS, BoxIndex
from tests.data.annotations import PUBLISHED, listed, numbers, open_images, own, picture, table, txt


def expected_txt(least, most):
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
    assert expected_txt(0.02, 0.8) == PUBLISHED["written"]
    for _ in range(2):
        code, out, _ = script("read_bbox", "--dataset_dir", published)
        assert code == 0 and txt(published) == PUBLISHED["written"]
        assert "train.parquet: 3 pictures, 8 boxes" in out
        assert {Path(name).name for _, name in listed(published)} == {"a9.jpg", "zz"}


def test_other_areas_leave_nothing_of_an_earlier_run(published, script):
    script("read_bbox", "--dataset_dir", published)
    code, _, _ = script("read_bbox", "--dataset_dir", published, "--min_area", 0.2, "--max_area", 0.5)
    expected = expected_txt(0.2, 0.5)
    assert code == 0 and 0 < len(expected) < len(PUBLISHED["written"])
    assert txt(published) == expected


def test_a_split_left_without_a_box_loses_its_index(published, script):
    script("read_bbox", "--dataset_dir", published)
    assert {Path(name).parts[0] for name in expected_txt(0.5, 0.8)} == {"train_0"}
    code, _, _ = script("read_bbox", "--dataset_dir", published, "--min_area", 0.5)
    assert code == 0 and txt(published) == expected_txt(0.5, 0.8)
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
    """Asserts that the problems are counted and listed, and that the other boxes are in the index."""
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
        "read_bbox.py: error: no box is left to train on, so the indices stay as they were: see"
    )
    assert not txt(tmp_path) and not list((tmp_path / "bbox").glob("*.parquet"))


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


# ------------------------------------------------------------------------------------ what users trip over


def test_a_run_that_keeps_nothing_changes_nothing(two, tmp_path, script):
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\nb.jpg,10,10,60,60\n")
    words = own("csv", tmp_path, two, tmp_path / "a.csv")
    assert script("read_bbox", *words)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("bbox/*.parquet")}
    for change in (("--images", tmp_path), ("--min_area", 0.7), ("--format", "masks")):
        assert script("read_bbox", *words, *change)[0] == 2
        assert {path: path.read_bytes() for path in tmp_path.glob("bbox/*.parquet")} == before


def test_pictures_in_two_splits_are_reported(two, tmp_path, script):
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
    assert code == 0 and "1 picture, 1 box\n" in out and "1 rows without an ImageID" in out


def test_two_pictures_of_one_name_are_reported(tmp_path, script):
    for name in ("a.jpg", "a.png"):
        picture(tmp_path / "photos" / name, (100, 80))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .4 .4\n")
    _, out, _ = script(
        "read_bbox", *own("yolo", tmp_path, tmp_path / "photos", tmp_path / "labels"), "--split", "train"
    )
    assert "1 files of the same name as another" in out


def test_what_is_held_out_stays_so(tmp_path, script):
    """In another order and with more pictures, the pictures held out before are held out again."""
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


def test_shards_of_an_earlier_index_are_reported(two, tmp_path, script):
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\n")
    words = [*own("csv", tmp_path, two, tmp_path / "a.csv"), "--validation", 0]
    code, out, _ = script("read_bbox", *words, "--shards", 5)
    assert code == 0 and "1 shards" in out
    assert "earlier index" not in script("read_bbox", *words)[1]
    (tmp_path / "a.csv").write_text("a.jpg,10,10,60,60\nb.jpg,10,10,60,60\n")
    assert "were made from an earlier index: add --shards" in script("read_bbox", *words)[1]
