"""scripts/read_bbox.py on many pictures: helper processes, and a kill at any moment."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ldm.data.prepare.annotations import CHUNK, chunked_map
from tests.conftest import ROOT
from tests.data.annotations import open_images, picture, table, txt

# ------------------------------------------------------------------------------------------ processes


def dies_of_sigterm(chunk):
    return [signal.getsignal(signal.SIGTERM) == signal.SIG_DFL for _ in chunk]


def test_helper_processes_die_of_sigterm():
    """SIGTERM ends them at once. A Python handler would not run while a process waits for a lock, and its parent would
    hang."""
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


def exit_code(process):
    """The exit code of a run. A run that hangs fails here."""
    try:
        return process.wait(timeout=30)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A data set of many pictures, and the files that an undisturbed run writes for it."""
    root = tmp_path_factory.mktemp("many") / "data"
    picture(root / "images" / "train_0" / "00000.jpg", (40, 30))
    data = (root / "images" / "train_0" / "00000.jpg").read_bytes()
    (root / "images" / "train_1").mkdir()
    rows = []
    for i in range(COUNT):
        (root / "images" / f"train_{i % 2}" / f"{i:05}.jpg").write_bytes(data)
        rows += [(f"{i:05}", "/m/1", i / COUNT / 2, 0.1, i / COUNT / 2 + 0.3, 0.2 + k / 10) for k in (1, 2, 3)]
    open_images(root, rows, "train")
    assert exit_code(started(root)) == 0
    result = txt(root), table(root)
    shutil.rmtree(root / "bbox")
    assert len(result[0]) == COUNT and len(result[1]) == COUNT
    return root, result


def run_until(root, condition):
    """Runs read_bbox until condition(its new hidden folders) is true or it ends -> the process."""
    bbox = root / "bbox"
    old = set(bbox.glob(".partial-*"))
    process = started(root)
    while process.poll() is None and not condition([path for path in bbox.glob(".partial-*") if path not in old]):
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
    for moment, condition in moments.items():
        process = run_until(root, condition)
        alive[moment] = process.poll() is None
        process.kill()
        process.wait()
        assert txt(root).items() <= files.items(), moment
        if (bbox / "train.parquet").exists():
            assert table(root) == rows, moment
        assert {path.name for path in bbox.glob("[!.]*")} <= {"train_0", "train_1", "train.parquet", "problems.csv"}
    assert sum(alive.values()) >= 3, alive
    assert exit_code(started(root)) == 0
    assert txt(root) == files and table(root) == rows


@pytest.mark.integration
def test_a_stopped_run_leaves_nothing_hidden(many):
    root, (files, _) = many
    old = set((root / "bbox").glob(".*"))
    process = run_until(root, lambda new: any(list(path.glob("train_0/*")) for path in new))
    process.terminate()
    assert exit_code(process) == 143
    assert set((root / "bbox").glob(".*")) <= old
    assert txt(root).items() <= files.items()
