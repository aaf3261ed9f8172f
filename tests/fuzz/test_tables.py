"""Tables of edits: every row is a job or is told, and cells mean what was typed."""

import csv
import io
import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ldm.batch.account import DONE, FAILED, Account, Outcome
from ldm.batch.table import COLUMNS, Defaults, read_jobs
from ldm.tables import DELIMITERS, read_rows
from ldm.util import UserError

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
numbers = st.one_of(st.integers(-3, 400), st.floats(allow_nan=True, allow_infinity=True)).map(str)
cells = st.one_of(
    words,
    numbers,
    st.sampled_from(["", " ", "7.0", "2,5", "yes", "no", "TRUE", "photo", "poisson", "ddim", "1e3", "0x10", "=1+1",
                     "1,2,30,40", "(1, 2, 30, 40)", "1,1 9,1 9,9", "a.png", "a|b", "..\\a.png", "C:\\a.png", "/a.png",
                     "line\nbreak", '"', "'1", "None", "nan", "fast"]),
)  # fmt: skip
GOOD = {
    "image": st.sampled_from(["a.png", "photos/b 2.jpg", "ä.webp"]),
    "reference": st.sampled_from(["r.png", "r.png|s.png"]),
    "box": st.sampled_from(["1,2,30,40", "1 2 30 40", "[1, 2, 30, 40]", "1;2;30;40"]),
    "seed": st.integers(0, 2**53 - 1),
    "steps": st.integers(1, 999),
    "scale": st.floats(0, 100),
    "height": st.sampled_from([64, 512]),
    "background": st.sampled_from(["exact", "Poisson", "NONE"]),
    "invert": st.booleans(),
}


@st.composite
def tables(draw, rows: list[list[str]]) -> bytes:
    """The rows as a program writes them."""
    buffer = io.StringIO()
    delimiter, end = draw(st.sampled_from(DELIMITERS)), draw(st.sampled_from(["\n", "\r\n"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    if draw(st.booleans()):
        buffer.write(f"sep={delimiter}{end}")
    for row in rows:
        writer.writerow(row)
        if draw(st.booleans()):
            buffer.write(draw(st.sampled_from([end, delimiter * 3 + end])))
    return buffer.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))


@given(st.data())
def test_a_table_gives_the_cells_that_were_written(data):
    columns = data.draw(st.integers(2, 5))
    header = [f"column {i}" for i in range(columns)]
    rows = data.draw(st.lists(st.lists(st.one_of(words, cells), min_size=columns, max_size=columns), max_size=5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(data.draw(tables([header, *rows])))
        found = [row for _, row in read_rows(path)]
    assert found == [row for row in [header, *rows] if any(cell.strip() for cell in row)]


@given(st.data())
def test_every_row_is_a_job_or_is_told(data):
    columns = data.draw(st.lists(st.sampled_from(COLUMNS), unique=True, max_size=10))
    columns = list(dict.fromkeys([*("image", "reference", "out")[: data.draw(st.integers(2, 3))], *columns]))
    rows = data.draw(st.lists(st.lists(cells, min_size=1, max_size=len(columns) + 1), min_size=1, max_size=5))
    for i in range(len(rows)):  # some of them are complete
        if data.draw(st.booleans()):
            good = {name: str(data.draw(value)) for name, value in GOOD.items()} | {"out": f"{i}.png"}
            rows[i] = [good.get(name, "") for name in columns]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.csv"
        path.write_bytes(data.draw(tables([columns, *rows])))
        try:
            jobs, bad = read_jobs(path, Defaults())
        except UserError as error:
            assert "jobs.csv" in str(error)
            return
    there = [row for row in rows if any(cell.strip() for cell in row)]
    lines = [each.line for each in (*jobs, *bad)]
    assert len(lines) == len(set(lines)) == len(there)
    assert all(row.reason for row in bad)


@given(st.data())
def test_a_complete_row_means_what_it_says(data):
    row = {name: data.draw(value) for name, value in GOOD.items()}
    name = data.draw(st.sampled_from([str, str.upper, lambda name: f" {name} "]))
    text = [*row, "out"], [*map(str, row.values()), "out.png"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.csv"
        path.write_bytes(data.draw(tables([[name(each) for each in text[0]], text[1]])))
        [job], bad = read_jobs(path, Defaults())
    assert not bad
    assert job.image == Path(folder) / row["image"] and len(job.references[0]) == row["reference"].count("|") + 1
    assert job.regions[0].box == (1, 2, 30, 40)
    assert (job.seed, job.sampling.steps, job.sampling.scale) == (row["seed"], row["steps"], row["scale"])
    assert (job.placement.height, job.placement.invert) == (row["height"], row["invert"])
    assert job.blending.background == row["background"].lower()


@given(st.lists(st.builds(Outcome, st.integers(2, 99), words, st.sampled_from([DONE, FAILED]), cells), max_size=6))
def test_an_account_reads_back_what_it_wrote(outcomes):
    with tempfile.TemporaryDirectory() as folder:
        account = Account(Path(folder) / "jobs.results.csv")
        account.begin(outcomes[:2])
        for outcome in outcomes[2:]:
            account.add(outcome)
        before = account.done_before()
        assert os.listdir(folder) == ["jobs.results.csv"]
    assert set(before) == {outcome.out for outcome in outcomes if outcome.status == DONE}


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: b"image,reference,out,box\n" + text.encode()))
def test_any_bytes_are_a_table_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.csv"
        path.write_bytes(content)
        try:
            jobs, bad = read_jobs(path, Defaults())
        except UserError:
            return
        assert jobs or bad
