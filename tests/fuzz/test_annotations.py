"""Annotations of every format: each line, object and row is a box or is told, each picture is used or is told."""

import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.data.prepare.annotations import prepare
from ldm.data.prepare.formats import READERS
from ldm.util import UserError
from tests.fuzz.pictures import picture_files

pytestmark = pytest.mark.filterwarnings("ignore::ldm.util.UserNote", "ignore::UserWarning")

WIDTH, HEIGHT = 20, 10
PICTURES = ["a.png", "b 2.jpg", "sub/c.PNG"]  # of this size, in every folder
DROPPED = ("boxes that are no numbers", "boxes inverted or empty", "boxes outside their picture")
LINES = (
    "lines that cannot be read",
    "lines that may be polygons or poses: use --format yolo-polygons or yolo-pose",
    "objects without a box",
    "boxes of an unknown image_id",
    "boxes around a crowd",
    "annotations without a box",
    "pictures whose name is not UTF-8",
)
pixels = st.one_of(st.integers(-3, 30), st.floats(-3, 30), st.floats()).map(str)
fractions = st.one_of(st.floats(0, 1), st.floats(-0.1, 1.2), st.floats(), st.integers(0, 2)).map(str)
words = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "0", "1.0", "2,5", "nan", "cat", '"', "a\tb", "\x0c", "\ud7ff"])
)
names = st.one_of(st.sampled_from([*PICTURES, "sub\\c.PNG", " a.png", "none.png", "/a.png", "../a.png", ""]), words)


def folder_of_pictures(root: Path) -> Path:
    for name in PICTURES:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return root / "images"


def tally(problems, kinds) -> int:
    return sum(len(problems.names.get(kind, ())) for kind in kinds)


def check(format: str, images: Path, annotations: Path, lines: int | None = None) -> None:
    """Reads, prepares and counts. lines: how many boxes were annotated; None: it does not matter.

    Raises UserError as the reader does."""
    boxes = READERS[format](images, annotations)
    problems = boxes.problems
    if lines is not None:
        assert boxes.table.height + tally(problems, LINES) == lines
    before = tally(problems, DROPPED)
    index = prepare(boxes, images.parent)
    used = {str(images.parent / path) for path in index["path"]}
    kept = int(index["boxes"].list.len().sum() or 0)
    unread = problems.names.get("pictures that cannot be read", ())
    changed = problems.names.get("pictures of another size than annotated", ())
    if not unread and not changed:
        assert kept + problems.filtered + tally(problems, DROPPED) - before == boxes.table.height
    for edges, width, height in zip(index["boxes"], index["width"], index["height"], strict=True):
        edges = np.array(edges.to_list())
        assert np.isfinite(edges).all() and (edges >= 0).all() and (edges <= [width, height] * 2).all()
        assert (edges[:, :2] < edges[:, 2:]).all()
    told = [name for each in problems.names.values() for name in each]
    for name in PICTURES:  # used, told, or all of its boxes have another size than asked for
        stem = f"/{Path(name).with_suffix('')}."
        assert str(images / name) in used or any(stem in each for each in told) or problems.filtered


def yolo_line(draw) -> str:
    kind = draw(st.sampled_from(["box", "confidence", "polygon", "pose", "pose2", "words"]))
    if kind == "words":
        return " ".join(draw(st.lists(words, max_size=7))).replace("\n", " ").replace("\r", " ")
    number = {"box": 4, "confidence": 5, "polygon": 2 * draw(st.integers(3, 6))}.get(kind, 4)
    line = [draw(st.sampled_from(["0", "1", "2.0", "-1", "x"])), *(draw(fractions) for _ in range(number))]
    for _ in range(draw(st.integers(1, 3)) if kind.startswith("pose") else 0):
        line += [draw(fractions), draw(fractions), *([] if kind == "pose2" else [str(draw(st.integers(0, 2)))])]
    return draw(st.sampled_from([" ", "\t", "  "])).join(line)


@given(st.sampled_from(["yolo", "yolo-polygons", "yolo-pose"]), st.data())
def test_yolo(format, data):
    with tempfile.TemporaryDirectory() as folder:
        images, labels, expected = folder_of_pictures(Path(folder)), Path(folder) / "labels", 0
        for name in data.draw(st.lists(st.sampled_from(PICTURES), unique=True)):
            lines = [yolo_line(data.draw) for _ in range(data.draw(st.integers(0, 4)))]
            text = data.draw(st.sampled_from(["\n", "\r\n"])).join(lines)
            path = labels / Path(name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode())
            expected += sum(bool(line.strip()) for line in text.splitlines())
        labels.mkdir(exist_ok=True)
        if data.draw(st.booleans()):
            (labels / "classes.txt").write_text("cat\ndog\n")
        check(format, images, labels, expected)


@given(st.data())
def test_csv(data):
    box = st.tuples(names, pixels, pixels, pixels, pixels).map(list)
    row = st.one_of(box, box, st.tuples(box, words).map(lambda x: [*x[0], x[1]]), st.lists(words, max_size=7))
    rows = data.draw(st.lists(row, max_size=6))
    header = data.draw(st.sampled_from([None, ["path", "x0", "y0", "x1", "y1", "label"],
                                        ["FileName", " xmin", "ymin", "xmax", "ymax", "class"]]))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        images, table, text = folder_of_pictures(Path(folder)), Path(folder) / "boxes.csv", io.StringIO()
        csv.writer(text, delimiter=data.draw(st.sampled_from(",;\t"))).writerows([*([header] if header else []), *rows])
        table.write_bytes(text.getvalue().encode("utf-8"))
        there = sum(any(cell.strip() for cell in row) for row in rows)
        try:
            check("csv", images, table, there if header else None)
        except UserError as error:
            assert "boxes.csv" in str(error)


@given(st.lists(st.text(st.sampled_from('a.png,;0123456789\n"\t '), max_size=30), max_size=5).map("\n".join))
def test_csv_that_no_program_writes(text):
    """Of what begins as a table, no line disappears without a word."""
    with tempfile.TemporaryDirectory() as folder:
        images, table = folder_of_pictures(Path(folder)), Path(folder) / "boxes.csv"
        table.write_text("path,x0,y0,x1,y1,label\n" + text, newline="")
        quoted = '"' in text
        lines = sum(bool(line.strip(' \t,"')) for line in text.splitlines())
        try:
            check("csv", images, table, None if quoted else lines)
        except UserError as error:
            assert "boxes.csv" in str(error)


@given(st.integers(0, 3), st.integers(0, 5))
def test_csv_with_a_quotation_mark_that_is_never_closed(row, column):
    """It would make one cell of all rows after it."""
    rows = [["a.png", "1", "2", "9", "9", "cat"] for _ in range(4)]
    rows[row][column] = '"' + rows[row][column]
    with tempfile.TemporaryDirectory() as folder:
        images, table = folder_of_pictures(Path(folder)), Path(folder) / "boxes.csv"
        table.write_text("\n".join(map(",".join, [["path", "x0", "y0", "x1", "y1", "label"], *rows])))
        with pytest.raises(UserError, match=f"a quotation mark after line {row + 1} is never closed"):
            check("csv", images, table)


def voc_object(draw) -> str:
    edges = "".join(f"<{edge}>{draw(st.one_of(pixels, st.just('?')))}</{edge}>"
                    for edge in ("xmin", "ymin", "xmax", "ymax")[draw(st.integers(-1, 0)):])  # fmt: skip
    box = draw(st.sampled_from([f"<bndbox>{edges}</bndbox>", edges, ""]))
    return f"<object><name>{draw(st.sampled_from(['cat', '', 'ä &amp; b']))}</name>{box}</object>"


@given(st.data())
def test_voc(data):
    with tempfile.TemporaryDirectory() as folder:
        images, files, expected = folder_of_pictures(Path(folder)), Path(folder) / "xml", 0
        for name in data.draw(st.lists(st.sampled_from(PICTURES), unique=True)):
            objects = [voc_object(data.draw) for _ in range(data.draw(st.integers(0, 3)))]
            space = data.draw(st.sampled_from(["", "", ' xmlns="http://example.org/voc"']))
            text = f"<annotation{space}>{''.join(objects)}</annotation>"
            broken = data.draw(st.sampled_from([False, False, False, True]))
            path = files / Path(name).with_suffix(".xml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text[: len(text) // 2] if broken else text, encoding="utf-8")
            expected += 0 if broken or space else len(objects)
        files.mkdir(exist_ok=True)
        check("voc", images, files, expected)


json_values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 30), st.floats(), pixels, words, st.lists(st.integers(0, 9), max_size=4),
    st.dictionaries(words, st.integers(), max_size=2), st.just("7"), st.just(7.0), st.just("0007"),
)  # fmt: skip


def mostly(draw, *values):
    """One of the values, or seldom anything."""
    return draw(json_values) if draw(st.integers(0, 30)) == 17 else draw(st.sampled_from(values))


@given(st.data())
def test_coco(data):
    draw = data.draw
    ids = [draw(st.sampled_from([i, str(i), float(i), f"000{i}"])) for i in range(3)]
    pictures = [
        {"id": mostly(draw, id), "file_name": mostly(draw, name), "width": mostly(draw, WIDTH, "20", 20.0, None),
         "height": mostly(draw, HEIGHT, "10", 10.0)}
        for id, name in zip(ids, PICTURES, strict=True)
    ]  # fmt: skip
    number = st.one_of(st.integers(-3, 30), pixels, st.floats())
    annotations = [
        {"id": i, "image_id": mostly(draw, 0, 1, 2, "1", 2.0, 9), "category_id": mostly(draw, 1, "1", None, 5),
         "bbox": mostly(draw, draw(st.lists(number, min_size=4, max_size=4)), None, []),
         "iscrowd": mostly(draw, 0, 0, 0, "0", 1, None)}
        for i in range(draw(st.integers(0, 5)))
    ]  # fmt: skip
    content = {"images": pictures, "annotations": annotations, "categories": [{"id": mostly(draw, 1), "name": "cat"}]}
    with tempfile.TemporaryDirectory() as folder:
        images, path = folder_of_pictures(Path(folder)), Path(folder) / "boxes.json"
        path.write_text(json.dumps(content))
        try:
            check("coco", images, path, len(annotations))
        except UserError as error:
            assert "boxes.json" in str(error)


@given(st.data())
def test_masks(data):
    with tempfile.TemporaryDirectory() as folder:
        images, masks = folder_of_pictures(Path(folder)), Path(folder) / "masks"
        count = 0
        for name in data.draw(st.lists(st.sampled_from(PICTURES), unique=True)):
            path = masks / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if data.draw(st.booleans()):
                file = data.draw(picture_files(damage=data.draw(st.booleans())))
                path.with_suffix(Path(file.name).suffix).write_bytes(file.data)
            else:
                mask = Image.new("L", (WIDTH, HEIGHT))
                box = data.draw(st.tuples(*[st.integers(0, 9)] * 2))
                mask.paste(255, (*box, box[0] + 1 + data.draw(st.integers(0, 9)), HEIGHT))
                mask.save(path.with_suffix(".png"))
            count += 1
        masks.mkdir(exist_ok=True)
        boxes = READERS["masks"](images, masks)
        told = tally(boxes.problems, ("masks that cannot be used", "files of the same name as another"))
        assert boxes.table.height + told == count
        check("masks", images, masks)


@given(st.sampled_from(["coco", "csv", "voc", "yolo"]), st.binary(max_size=200))
def test_any_bytes_are_annotations_or_refused(format, content):
    with tempfile.TemporaryDirectory() as folder:
        images = folder_of_pictures(Path(folder))
        path = Path(folder) / ("labels/a." + {"voc": "xml"}.get(format, "txt"))
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            check(format, images, path if format in ("coco", "csv") else path.parent)
        except UserError as error:
            assert "\n" not in str(error)
