"""scripts/edit_batch.py in several processes, from this disk and a bucket: every row is done once, none is lost."""

import csv
import os
import socket
import subprocess
import sys
import time
import urllib.request

import fsspec
import pytest

from ldm.batch.account import DONE, Account, Outcome
from ldm.batch.ranks import local_rank, rank_and_world_size
from ldm.checkpoint.locate import MINI_CKPT
from ldm.storage import place
from ldm.util import UserError
from tests.batch.test_runner import BENCH, IDS, MODEL, write_table
from tests.conftest import ROOT, empty_memory

KILLED = """
import os, signal
from ldm.batch import account as accounts
from ldm.cli.batch import main

add, done = accounts.Account.add, []

def add_and_die(account, outcome):
    add(account, outcome)
    done.append(outcome)
    if len(done) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

accounts.Account.add = add_and_die
main()
"""
ROWS = 9


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, (2, 3)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 2)),
        ({"RANK": "1"}, "RANK and WORLD_SIZE are not two numbers"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK and WORLD_SIZE are not two numbers"),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "4"}, "SLURM_PROCID and SLURM_NTASKS are not two numbers"),
    ],
)
def test_the_number_of_a_process(variables, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, tuple):
        assert rank_and_world_size() == expected
    else:
        with pytest.raises(UserError, match=expected):
            rank_and_world_size()
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert local_rank() == 3


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    empty_memory()
    return tmp_path if request.param == "disk" else place("memory://box/tables")


def rows_in(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def outcome(line):
    return Outcome(line, f"{line}.png", DONE, "", 0.5)


def test_the_last_process_to_end_merges_the_account(folder):
    path = folder / "jobs.results.csv"
    accounts = [Account(path, rank, 2) for rank in range(2)]
    for account in accounts:
        account.begin([])
    accounts[1].add(outcome(3))
    assert not accounts[1].close(rows=3) and not path.exists()
    accounts[0].add(outcome(4))
    accounts[0].add(outcome(2))
    assert accounts[0].close(rows=3)
    assert [row["line"] for row in rows_in(path)] == ["2", "3", "4"]
    again = Account(path, 1, 2)  # one of them is run again, after the end of the other
    assert again.done_before().keys() == {"2.png", "3.png", "4.png"}
    again.begin([outcome(3)])
    assert again.close(rows=3) and len(rows_in(path)) == 3


def test_another_number_of_processes_resumes_what_a_part_says(folder):
    path = folder / "jobs.results.csv"
    killed = Account(path, 0, 2)
    killed.begin([outcome(2)])
    later = Account(path, 0, 3)
    assert later.done_before().keys() == {"2.png"}
    later.begin([outcome(2)])
    alone = Account(path)
    alone.begin(alone.done_before().values())
    assert alone.close(rows=1) and not alone._files_of_parts()
    assert [row["line"] for row in rows_in(path)] == ["2"]


def test_an_account_in_storage_is_written_now_and_then(monkeypatch):
    empty_memory()
    account = Account(place("memory://box/jobs.results.csv"))
    account.begin([])
    account.add(outcome(2))
    assert not rows_in(account.path)
    monkeypatch.setattr("ldm.batch.account.WRITE_EVERY", -1)
    account.add(outcome(3))
    assert len(rows_in(account.path)) == 2


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """s3://bucket on a server of this machine."""
    pytest.importorskip("moto", reason="needs pip install 'moto[s3,server]' s3fs")
    pytest.importorskip("s3fs", reason="needs pip install 's3fs'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    settings = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"AWS_ENDPOINT_URL": url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PAINT_BY_EXAMPLE_CACHE", str(tmp_path / "fetched"))
    command = [sys.executable, "-m", "moto.server", "-p", url.rpartition(":")[2]]
    with open(tmp_path / "moto.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                time.sleep(0.2)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield place("s3://bucket")
    finally:
        server.kill()
        server.wait()


def run(folder, code, jobs, *more):
    """Two processes under torchrun. code: of the program; None: scripts/edit_batch.py."""
    program = ROOT / "scripts/edit_batch.py"
    if code:
        program = folder / "program.py"
        program.write_text(code)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--ddim_steps", "2", "--batch_size", "2", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *torchrun, str(program), str(jobs), *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def check_killed_and_run_again(tmp_path, jobs, model):
    """Processes of which one is killed, so that torchrun ends the other; then the command again."""
    out = jobs.parent / "out"

    def pictures():
        files = out.files() if not isinstance(out, type(tmp_path)) else out.glob("*.png")
        return {path.name: path.read_bytes() for path in files}

    killed = run(tmp_path, KILLED, jobs, *model)
    assert killed.returncode != 0 and "exitcode  : -9" in killed.stderr, killed.stderr
    first = pictures()
    assert 2 <= len(first) < ROWS, killed.stderr
    done = run(tmp_path, None, jobs, *model)
    assert done.returncode == 0, done.stderr
    assert f"process 1 of 2: {(ROWS + 1) // 2} of {ROWS + 1} rows" in done.stdout
    assert "1 of 5 rows could not be edited" in done.stderr and "accounts for all rows" in done.stdout
    last = pictures()
    assert sorted(last) == [f"{i}.png" for i in range(ROWS)]
    assert {name: last[name] for name in first} == first
    account = rows_in(jobs.with_suffix(".results.csv"))
    assert [int(row["line"]) for row in account] == list(range(2, ROWS + 3))
    assert [row["status"] for row in account] == [DONE] * ROWS + ["failed"]


def rows_of(count, root):
    for i in range(count):
        name = IDS[i % len(IDS)]
        paths = {"image": f"{root}/GT_3500/{name}_GT.png", "reference": f"{root}/Ref_3500/{name}_ref.png"}
        yield paths | {"mask": f"{root}/Mask_bbox_3500/{name}_mask.png", "out": f"out/{i}.png", "seed": str(i)}


def table_of(path, root):
    bad = {"image": "nowhere.jpg", "box": "1,2,30,40", "reference": "nowhere.jpg", "out": "out/bad.png"}
    write_table(path, [*rows_of(ROWS, root), bad])


@pytest.mark.integration
def test_one_of_two_processes_is_killed(tmp_path):
    table_of(tmp_path / "jobs.csv", BENCH)
    check_killed_and_run_again(tmp_path, tmp_path / "jobs.csv", MODEL)


@pytest.mark.slow
def test_one_of_two_processes_is_killed_with_everything_in_a_bucket(tmp_path, bucket):
    """Table, pictures, checkpoint, results and account; the packages weigh 100 MB, too much for every test run."""
    table_of(tmp_path / "jobs.csv", "../pictures")
    (bucket / "tables/jobs.csv").upload(tmp_path / "jobs.csv")
    for file in BENCH.glob("*_3500/*.png"):
        (bucket / "pictures" / file.relative_to(BENCH)).upload(file)
    (bucket / "mini.safetensors").upload(MINI_CKPT)
    model = [*MODEL[:2], "--ckpt", str(bucket / "mini.safetensors"), *MODEL[4:]]
    check_killed_and_run_again(tmp_path, bucket / "tables/jobs.csv", model)
    with pytest.raises(UserError, match="its bucket is missing"):
        place("s3://nowhere/a").write_bytes(b"a")
