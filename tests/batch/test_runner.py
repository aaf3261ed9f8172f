"""scripts/edit_batch.py: every row is done once, whatever happens."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.batch.runner import BatchOptions, run_jobs
from ldm.batch.table import Defaults, read_jobs
from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.editing.metadata import read_settings
from ldm.editing.options import Loading, Placement, Sampling
from ldm.pipeline import PaintByExample
from ldm.util import UserError, group_into_batches
from tests.conftest import ROOT

BENCH = ROOT / "examples/mini"
IDS = sorted(path.name.split("_")[0] for path in BENCH.glob("GT_3500/*"))
MODEL = ["--config", str(MINI_CONFIG), "--ckpt", str(MINI_CKPT), "--device", "cpu"]


def rows_of(count):
    """Good rows, in turn with a mask and with a box."""
    for i in range(count):
        name = IDS[i % len(IDS)]
        region = {"box": f"{10 + i % 5},12,40,44"} if i % 2 else {"mask": f"{BENCH}/Mask_bbox_3500/{name}_mask.png"}
        paths = {"image": f"{BENCH}/GT_3500/{name}_GT.png", "reference": f"{BENCH}/Ref_3500/{name}_ref.png"}
        yield paths | region | {"out": f"out/{i}.png", "seed": str(i)}


def bad_rows(folder):
    Image.new("L", Image.open(f"{BENCH}/GT_3500/{IDS[0]}_GT.png").size).save(folder / "black.png")
    faults = [
        ({"image": "nowhere.jpg"}, "nowhere.jpg does not exist"),
        ({"mask": str(folder / "black.png")}, "has nothing to paint"),
        ({"out": "out/0.png"}, "is also the out of line 2"),
        ({"steps": "many"}, "steps 'many' is not a whole number"),
        ({"mask": "", "box": "900,900,950,950"}, "contains nothing of the photo"),
    ]
    good = next(rows_of(1))
    return [(good | {"out": f"bad{i}.png"} | fault, words) for i, (fault, words) in enumerate(faults)]


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "mask", "box", "reference", "out", "seed", "steps", "scale", "sampler"])
        writer.writeheader()
        writer.writerows(rows)


def account_of(folder):
    with open(folder / "jobs.results.csv", newline="") as file:
        return {int(row["line"]): row for row in csv.DictReader(file)}


def is_whole(path):
    with Image.open(path) as picture:
        picture.load()
    return True


KILLED = """
import os, signal
from ldm.batch import account as accounts
from ldm.cli.batch import main

add, done = accounts.Account.add, []

def add_and_die(account, outcome):
    add(account, outcome)
    done.extend([outcome] * (outcome.status == accounts.DONE))
    if len(done) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)

accounts.Account.add = add_and_die
main()
"""


def kill_and_run_again(folder, good, bad, more):
    """Good rows with bad ones between them: SIGKILL after a quarter of them, then the command, which continues."""
    wrong = bad_rows(folder)[:bad]
    rows = list(rows_of(good))
    expected = {}  # line -> words
    for i, (row, words) in enumerate(wrong):
        at = 1 + i * (len(rows) // bad)
        rows.insert(at, row)
        expected[2 + at] = words
    write_table(folder / "jobs.csv", rows)
    flags = [str(folder / "jobs.csv"), *MODEL, *more]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.format(after=good // 4), *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    time.sleep(0.5 if "--devices" in more else 0)  # its processes end by themselves
    first = {path: path.stat().st_mtime_ns for path in folder.glob("out/[0-9]*.png")}
    interrupted = list(folder.glob("out/.partial-*"))  # by SIGKILL, in another thread that writes
    assert good // 4 <= len(first) < good and all(map(is_whole, first))

    command = [sys.executable, "scripts/edit_batch.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"{bad} of {good + bad} rows could not be edited" in done.stderr
    pictures = sorted(set(folder.glob("out/*")) - {folder / "out/.files", *interrupted})  # nothing else is half-written
    assert sorted(path.name for path in pictures) == sorted(f"{i}.png" for i in range(good))
    assert all(map(is_whole, pictures))
    assert all(path.stat().st_mtime_ns == made for path, made in first.items())  # once
    with open(folder / "jobs.results.csv", newline="") as file:
        lines = [int(row["line"]) for row in csv.DictReader(file)]
    assert lines == list(range(2, 2 + good + bad))
    account = account_of(folder)
    assert {line for line, row in account.items() if row["status"] == "failed"} == set(expected)
    for line, words in expected.items():
        assert words in account[line]["reason"] and f"line {line}: " in done.stderr
    assert read_settings(folder / "out/3.png")["seed"] == 3
    return account


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a real kill")
def test_a_killed_run_continues(tmp_path):
    kill_and_run_again(tmp_path, 12, 3, ["--ddim_steps", "3", "--batch_size", "2"])


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--devices", "cpu", "cpu"]], ids=["one", "two processes"])
def test_a_killed_run_of_fifty_rows_continues(tmp_path, more):
    account = kill_and_run_again(tmp_path, 45, 5, ["--ddim_steps", "5", *more])
    assert len(account) == 50


def test_a_batch_gives_what_single_edits_give(tmp_path, script):
    """Rows with settings of their own, and rows without; --from repeats both."""
    rows = list(rows_of(6))
    rows[1] |= {"steps": "2", "scale": "2", "sampler": "ddim"}
    write_table(tmp_path / "jobs.csv", rows)
    code, out, err = script("edit_batch", tmp_path / "jobs.csv", *MODEL, "--ddim_steps", 3)
    assert code == 0, err
    assert "6 pictures written" in out
    for i in (1, 2):
        row = rows[i]
        how = ["--scale", 2, "--ddim_steps", 2, "--sampler", "ddim"] if i == 1 else ["--ddim_steps", 3]
        region = ["--box", row["box"]] if "box" in row else ["--mask_path", row["mask"]]
        files = ["--image_path", row["image"], "--reference_path", row["reference"], "--outdir", tmp_path / "single"]
        code, _, err = script("inference", *files, *region, *how, *MODEL, "--seed", i, "--skip_grid")
        assert code == 0, err
        (single,) = tmp_path.glob(f"single/results/*_{i}.png")
        pictures = [np.asarray(Image.open(path)).astype(int) for path in (single, tmp_path / f"out/{i}.png")]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
        code, _, err = script("inference", "--from", tmp_path / f"out/{i}.png", "--outdir", tmp_path / "again")
        assert code == 0, err
        (again,) = tmp_path.glob(f"again/results/*_{i}.png")
        assert np.abs(np.asarray(Image.open(again)).astype(int) - pictures[1]).max() <= 1
    seconds = [float(row["seconds"]) for row in account_of(tmp_path).values()]
    assert len(seconds) == 6 and all(0 < each < 100 for each in seconds)
    # again: nothing to do, and the account as it was
    before = account_of(tmp_path)
    code, out, _ = script("edit_batch", tmp_path / "jobs.csv", *MODEL, "--ddim_steps", 3)
    assert code == 0 and "kept: 6 pictures, as they are there" in out
    assert account_of(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "jobs.csv cannot be read"),
        ("image,mask,out\na,b,c\n", "has no column 'reference'"),
        ("image,mask,reference,out,colour\na,b,c,d,e\n", "has an unknown column 'colour'"),
        ("image,mask,reference,out\n", "has no rows"),
        (b"\xff\xfe\x00", "is not a CSV file"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, script, text, words):
    if text is not None:
        (tmp_path / "jobs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = script("edit_batch", tmp_path / "jobs.csv", *MODEL)
    assert code == 2 and words in err and "Traceback" not in err and not out
    assert not (tmp_path / "jobs.results.csv").exists()


@pytest.mark.slow
def test_the_error_of_a_process_that_cannot_load_the_model_is_reported(tmp_path, script):
    write_table(tmp_path / "jobs.csv", rows_of(2))
    model = ["--config", MINI_CONFIG, "--ckpt", ROOT / "README.md", "--devices", "cpu", "cpu"]
    code, _, err = script("edit_batch", tmp_path / "jobs.csv", *model)
    assert code == 2 and "neither a .ckpt nor a .safetensors" in err and "Traceback" not in err


def test_rows_with_mistakes_are_reported(tmp_path):
    (tmp_path / "jobs.csv").write_text(
        "image,mask,box,reference,out,seed\n"
        "a.jpg,,,r.jpg,1.png,\n"
        'a.jpg,m.png,"1,2,3,4",r.jpg,2.png,\n'
        "a.jpg,m.png,,,3.png,\n"
        "a.jpg,m.png,,r.jpg,4.gif,\n"
        "a.jpg,m.png,,r.jpg,5.png,-1\n"
        "a.jpg,m.png,,r.jpg,6.png,1,2,3\n"
        'a.jpg,,"1,2",r.jpg,7.png,\n'
        "\n"
        "a.jpg,m.png,,r.jpg,good.png,7\n"
    )
    sampling = Sampling(steps=10)
    (job,), bad = read_jobs(tmp_path / "jobs.csv", Defaults(sampling=sampling))
    assert job.seed == 7 and job.image == tmp_path / "a.jpg" and job.sampling == sampling
    words = [
        "the region is none of mask, box, polygon, alpha, snap, click, click_not",
        "the region is both mask and box",
        "reference is missing",
        "no suffix of a format",
        "seed -1 is out",
    ]
    words += ["more values than columns", "x0,y0,x1,y1"]
    assert [outcome.line for outcome in bad] == list(range(2, 9))
    for outcome, word in zip(bad, words, strict=True):
        assert word in outcome.reason, outcome


@pytest.mark.slow
def test_the_figures_of_the_documents(tmp_path, script):
    code, _, err = script("editing_figures", "--outdir", tmp_path)
    assert code == 0, err
    names = ["editing.jpg", "editing_batch.jpg", "editing_python.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (ROOT / "docs" / name).stat().st_size <= 200_000
        assert Image.open(ROOT / "docs" / name).size == Image.open(tmp_path / name).size


def test_a_row_must_not_contradict_a_preset(tmp_path):
    (tmp_path / "jobs.csv").write_text('image,box,reference,out,steps\na.png,"0,0,9,9",b.png,c.png,9\n')
    sampling = Sampling.choose("draft")
    jobs, bad = read_jobs(tmp_path / "jobs.csv", Defaults(sampling=sampling, preset="draft"))
    assert not jobs and "contradict --preset draft" in bad[0].reason
    jobs, bad = read_jobs(tmp_path / "jobs.csv", Defaults(sampling=sampling))
    assert jobs[0].sampling == replace(sampling, steps=9) and not bad


def test_a_row_that_fails_in_a_batch_fails_alone(tmp_path, monkeypatch):
    """As one whose result is not finite."""
    edit = PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu")
    honest = edit.sample

    def sample(inputs, seeds, *args, **kwargs):
        if 2 in seeds:
            raise UserError("the result is not finite")
        return honest(inputs, seeds, *args, **kwargs)

    monkeypatch.setattr(edit, "sample", sample)
    write_table(tmp_path / "jobs.csv", rows_of(5))
    jobs, _ = read_jobs(tmp_path / "jobs.csv", Defaults(sampling=Sampling(sampler="ddim", steps=2)))
    outcomes = []
    run_jobs(edit, jobs, BatchOptions(Loading(), batch_size=4), outcomes.append)
    assert sorted((outcome.line, outcome.status) for outcome in outcomes) == [
        (line, "failed" if line == 4 else "done") for line in range(2, 7)
    ]
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["0.png", "1.png", "3.png", "4.png"]


def test_one_thread_alone_uses_the_networks(tmp_path, monkeypatch):
    """Pictures are read ahead in others; an outline by the model's own difference is found where edits are sampled."""
    edit, places = PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu"), set()

    def noting(name, own):
        def called(*args, **kwargs):
            places.add((name, threading.current_thread()))
            return own(*args, **kwargs)

        return called

    for name in ("_outline", "sample"):
        monkeypatch.setattr(edit, name, noting(name, getattr(edit, name)))
    write_table(tmp_path / "jobs.csv", rows_of(4))
    defaults = Defaults(sampling=Sampling(sampler="ddim", steps=1), placement=Placement(mask_from_difference=True))
    (jobs, _), outcomes = read_jobs(tmp_path / "jobs.csv", defaults), []
    run_jobs(edit, jobs, BatchOptions(Loading(), batch_size=2), outcomes.append)
    assert [each.status for each in outcomes] == ["done"] * 4, outcomes
    assert places == {("_outline", threading.current_thread()), ("sample", threading.current_thread())}


def test_items_that_differ_do_not_all_wait():
    asked = []
    batches = group_into_batches((asked.append(n) or n for n in range(100)), 3, lambda n: n)
    assert next(batches) == [0] and len(asked) == 12
    assert [len(each) for each in batches] == [1] * 99


def test_a_batch_has_equal_keys_and_comes_as_soon_as_it_is_full():
    asked = []
    numbers = (asked.append(n) or n for n in range(7))
    batches = group_into_batches(numbers, 2, lambda n: n % 3)
    assert next(batches) == [0, 3] and asked == [0, 1, 2, 3]
    assert list(batches) == [[1, 4], [2, 5], [6]]
