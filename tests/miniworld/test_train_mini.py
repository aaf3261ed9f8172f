"""scripts/train_mini.py: the commands of `make mini` in about a given time."""

import importlib
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.files import read_file
from ldm.checkpoint.locate import MINI_CONFIG
from ldm.cli import train_mini
from ldm.cli.main import module_of
from ldm.cli.train import RUN_VARIABLE
from ldm.util import UserError
from tests.miniworld.conftest import make_commands

OPTIONS = {"rehearse": False, "compile": False}
NAMES = {
    "main.py": "train",
    "scripts/make_miniworld.py": "make-miniworld",
    "scripts/read_bbox.py": "prepare",
    "scripts/prepare_latents.py": "prepare-latents",
    "scripts/modify_checkpoints.py": "modify",
    "scripts/convert_checkpoint.py": "convert",
    "scripts/mini_table.py": "mini-table",
}


def planned(minutes=9.0, **options):
    """The phases, as if each ended at once."""
    clock = train_mini.Clock(time.monotonic() + 60 * minutes)
    return list(train_mini.phases(Namespace(**OPTIONS | options), clock))


def test_its_commands_are_those_of_make_mini():
    """With the same flags, configs and files, and more overrides; the number of latents differs."""
    commands = [words for chains in planned() for chain in chains for words in chain]
    commands.append(train_mini.scoring(Namespace(**OPTIONS)))
    wanted = [[word for word in words if not word.isdigit()] for words in make_commands("mini")]
    assert len(commands) == len(wanted)
    for script, *words in wanted:
        same = [each for each in commands if each[0] == NAMES[script] and set(words) <= set(each)]
        assert len(same) == 1, (script, words)


def test_what_depends_on_nothing_runs_at_the_same_time():
    phases = planned()
    trainings = [
        [[Path(words[2]).name for words in chain if words[0] == "train"] for chain in chains] for chains in phases
    ]
    assert [each for each in trainings if any(each)] == [
        [["first_stage", "first_stage_128"], ["clip"], ["oracle"]], [["prior"]], [["paint_by_example"]],
    ]  # fmt: skip


def test_the_time_is_divided():
    """What remains after a phase is divided among those after it; all shares together are the whole."""
    minutes = {}
    for chains in planned(9.0):
        for words in (words for chain in chains for words in chain if words[0] == "train"):
            (text,) = [word for word in words if word.startswith("lightning.minutes=")]
            minutes[Path(words[2]).name] = float(text.partition("=")[2])
    total, parts = 9.0, 28 / 87  # planned as if the phases took no time
    assert minutes["clip"] == pytest.approx(total * parts - train_mini.START_UP, abs=0.01)
    assert minutes["first_stage"] == minutes["first_stage_128"]
    assert minutes["first_stage"] == pytest.approx(total * parts / 2 - train_mini.START_UP, abs=0.01)
    assert minutes["prior"] == pytest.approx(total * 9 / 50 - train_mini.START_UP, abs=0.01)
    assert minutes["paint_by_example"] == pytest.approx(total * 28 / 41 - train_mini.START_UP, abs=0.01)
    late = [words for chain in planned(-1)[4] for words in chain]
    assert [words[0] for words in late] == ["train"] and "lightning.minutes=0.0010" in late[0]  # a step


def test_a_failure_ends_the_others(tmp_path):
    (tmp_path / "log").mkdir()
    waits = ["train", "--base", "configs/mini/clip.yaml"]
    with pytest.raises(UserError, match=r"squares failed \(.*\): see .*squares.txt"):
        train_mini.run_chains([[waits, waits], [["squares", "--unknown"]]], tmp_path)
    assert (tmp_path / "log/train.txt").read_text().count("train --base") == 1


def test_a_command_that_does_not_end_itself_is_killed(tmp_path, monkeypatch):
    """When another fails: none outlives this process."""
    ignores = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    popen = subprocess.Popen([sys.executable, "-c", ignores], stdout=subprocess.PIPE)

    def start(words, folder):
        if words == ["fails"]:
            raise UserError("failed")
        popen.stdout.readline()
        return train_mini.Process("ignores", popen, folder, 0.0)

    monkeypatch.setattr(train_mini.Process, "start", start)
    monkeypatch.setattr(train_mini, "PATIENCE", 0.1)
    with popen, pytest.raises(UserError, match="failed"):
        train_mini.run_chains([[["ignores"]], [["fails"]]], tmp_path)
    assert popen.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("flags", "gpu", "message"), [
    ([], False, "needs a GPU, which PyTorch does not find: use make mini, or add --rehearse"),
    ([], True, "cannot be written to"),
    (["--rehearse"], False, "cannot be written to"),
])  # fmt: skip
def test_mistakes(flags, gpu, message, tmp_path, monkeypatch, script):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    (tmp_path / "file").touch()
    code, _, err = script("train_mini", *flags, "--outdir", tmp_path / "file/run")
    assert code == 2 and message in err


def test_a_table_that_fails_leaves_weights_and_curves(tmp_path, monkeypatch, script):
    runs = []

    def run(chains, folder):
        runs.append(chains)
        if chains[0][0][0] == "mini-table":
            raise UserError("the table failed")

    monkeypatch.setattr(train_mini, "run_chains", run)
    monkeypatch.setattr(train_mini, "collect", lambda folder: runs.append("collected") or "")
    code, _, err = script("train_mini", "--rehearse", "--outdir", tmp_path / "run")
    assert code == 2 and "the table failed" in err
    assert runs[-2] == "collected" and runs[-1] == [[train_mini.scoring(Namespace(rehearse=True))]]


@pytest.mark.slow
def test_the_rehearsal(tmp_path, monkeypatch):
    """In this process. The result's files are small enough and are the model's, whose parts are those of the runs."""
    monkeypatch.chdir(tmp_path)
    options = Namespace(rehearse=True, compile=False)
    start = time.monotonic()

    def run(name, *words):
        monkeypatch.delenv(RUN_VARIABLE, raising=False)  # of the training before
        importlib.import_module(module_of(name)).main(words)

    for chains in train_mini.phases(options, train_mini.Clock(start + 60)):
        for words in (words for chain in chains for words in chain):
            run(*words)
    text = train_mini.collect(tmp_path)
    run(*train_mini.scoring(options))
    assert "| mini, scale 5 |" in train_mini.collect_table(tmp_path)
    for name in train_mini.LOSSES:
        assert re.search(rf"^{name}: [\d,]+ steps in [\d.]+ minutes, val/\w+ [\d.]+$", text, flags=re.M), text
    files = {path.name: path.stat().st_size for path in (tmp_path / "result").iterdir()}
    assert max(files.values()) <= 15 * 2**20 and files.keys() >= {"mini_clip.safetensors", "curves.csv", "mini.png"}
    first = tmp_path / "result/mini-00001-of-00003.safetensors"
    model = read_checkpoint(tmp_path / "logs/mini/mini.safetensors")
    assert all(torch.equal(tensor, model[name]) for name, tensor in read_checkpoint(first).items())
    assert read_checkpoint(first).keys() == model.keys()
    load_model(MINI_CONFIG, first)
    clip = read_file(tmp_path / "result/mini_clip.safetensors")
    assert torch.equal(clip["visual.conv1.weight"], model["cond_stage_model.transformer.visual.conv1.weight"])
    assert np.asarray(Image.open(tmp_path / "result/curves.png")).min() < 255
