"""Real runs of main.py: divided among processes, killed, stopped by signals, with a full disk."""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from tests.training.runs import PIPES, command, losses, run, wait_for_step

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run that nothing disturbs: its folder."""
    logs = tmp_path_factory.mktemp("whole")
    done = run(command(photos, logs))
    assert done.returncode == 0, done.stderr
    (folder,) = logs.iterdir()
    assert list(losses(folder)) == list(range(14))
    return folder


def test_a_run_leaves_what_it_promises(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "csv",
        "images",
        "tensorboard",
    ]
    assert Image.open(whole / "images/step00000001.png").size == (5 * 258 - 2, 256)
    assert list(whole.glob("tensorboard/events*"))
    names = sorted(path.name for path in whole.glob("checkpoints/*"))
    assert names[0] == "last.ckpt" and len(names) == 3  # and the best of two validations
    saved = OmegaConf.load(whole / "config.yaml")
    assert saved.model.params.use_ema and saved.lightning.seed == 23 and saved.lightning.trainer.max_steps == 14
    with open(whole / "csv/version_0/metrics.csv") as file:
        columns = set(csv.DictReader(file).fieldnames)
    assert {"train/loss_simple", "val/loss_simple", "val/loss_simple_ema", "samples/s", "lr"} <= columns


def test_its_checkpoint_edits(whole, example):
    from ldm.pipeline import PaintByExample

    pictures = []
    for ema in (False, True):
        tensors = read_checkpoint(whole / "checkpoints/last.ckpt", ema=ema)
        write_checkpoint(tensors, whole / "small.safetensors")
        edit = PaintByExample.load(whole / "config.yaml", whole / "small.safetensors", device="cpu")
        pictures.append(np.asarray(edit(**example, steps=2, height=64, width=64, progress=False)))
    (whole / "small.safetensors").unlink()
    assert pictures[0].shape == (400, 600, 3) and (pictures[0] != pictures[1]).any()


def test_a_killed_run_goes_on_exactly(whole, photos, tmp_path):
    """kill -9 in the first epoch, SIGTERM in the second: losses and all that is kept equal the undisturbed run's."""
    process = subprocess.Popen(command(photos, tmp_path), **PIPES)
    while not (folders := list(tmp_path.iterdir())):
        time.sleep(0.1)
    wait_for_step(folders[0], process, 4)
    process.kill()
    process.communicate()
    resume = [sys.executable, "main.py", "-r", str(folders[0]), "data.params.num_workers=2"]
    process = subprocess.Popen(resume, **PIPES)
    wait_for_step(folders[0], process, 8)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert f"to resume: python main.py -r {folders[0]}" in out
    stopped = max(losses(folders[0])) + 1
    assert 9 <= stopped < 14 and f"stopped after step {stopped}" in out
    assert torch.load(folders[0] / "checkpoints/last.ckpt", weights_only=True)["global_step"] == stopped
    done = run([*resume, "--no-test"])
    assert done.returncode == 0, done.stderr
    assert losses(folders[0]) == losses(whole)
    kept = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole, folders[0])]
    assert all(torch.equal(t, kept[1]["state_dict"][name]) for name, t in kept[0]["state_dict"].items())
    assert any(name.startswith("model_ema.") for name in kept[0]["state_dict"])
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in kept]
    assert all(torch.equal(t, moments[1][i][key]) for i, state in moments[0].items() for key, t in state.items())
    assert kept[0]["lr_schedulers"] == kept[1]["lr_schedulers"]


@pytest.mark.slow
def test_a_run_that_reached_its_last_step_goes_on_exactly(whole, photos, tmp_path):
    """It stopped at step 9, in the middle of an epoch, and is given more."""
    assert run(command(photos, tmp_path, "--max_steps", 9)).returncode == 0
    (folder,) = tmp_path.iterdir()
    done = run([sys.executable, "main.py", "-r", str(folder), "--no-test", "--max_steps", "14"])
    assert done.returncode == 0, done.stderr
    assert losses(folder) == losses(whole)


@pytest.mark.slow
def test_accumulated_gradients_are_not_lost(photos, tmp_path):
    """Two batches a step. Ctrl-C comes at any time; going on gives what an undisturbed run gives, weight for weight."""
    words = ("data.params.batch_size=2", "--accumulate_grad_batches", 2, "--max_steps", 8)
    folders = []
    for name, code in (("whole", 0), ("stopped", 143)):
        process = subprocess.Popen(command(photos, tmp_path / name, *words), **PIPES)
        while not (tmp_path / name).exists() or not list((tmp_path / name).iterdir()):
            time.sleep(0.1)
        folders += (tmp_path / name).iterdir()
        if name == "stopped":
            wait_for_step(folders[-1], process, 3)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == code, err
    assert run([sys.executable, "main.py", "-r", str(folders[1]), "--no-test"]).returncode == 0
    kept = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in folders]
    assert all(torch.equal(t, kept[1][name]) for name, t in kept[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["leader", "both"])
def test_two_processes_stop_together(whom, photos, tmp_path):
    words = command(
        photos, tmp_path, "data.params.batch_size=2", "--devices", 2, "--strategy", "ddp", "--max_steps", 2000
    )
    process = subprocess.Popen(words, **PIPES, start_new_session=True)
    while not list(tmp_path.iterdir()):
        time.sleep(0.1)
    (folder,) = tmp_path.iterdir()
    wait_for_step(folder, process, 2)
    if whom == "leader":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    stopped = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert stopped == max(losses(folder)) + 1 and f"stopped after step {stopped}" in out
    done = run([sys.executable, "main.py", "-r", str(folder), "--no-test", "--max_steps", str(stopped + 2)])
    assert done.returncode == 0 and max(losses(folder)) == stopped + 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--limit_train_batches", 3), ("--max_time", "{seconds: 1}")])
def test_epochs_cut_short_go_on_exactly(words, whole, photos, tmp_path):
    """Where an epoch has 3 batches, or the time is up somewhere."""
    limited = words[0] == "--limit_train_batches"
    reference = losses(whole)
    if limited:
        assert run(command(photos, tmp_path / "whole", *words, "--max_steps", 9)).returncode == 0
        reference = losses(next((tmp_path / "whole").iterdir()))
    done = run(command(photos, tmp_path / "cut", *words, "--max_steps", 5 if limited else 14))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cut").iterdir()
    more = ("--max_steps", "9") if limited else ("--max_time", "null", "--max_steps", "14")
    done = run([sys.executable, "main.py", "-r", str(folder), "--no-test", *more])
    assert done.returncode == 0, done.stderr
    assert losses(folder) == reference


def test_another_learning_rate_for_a_run_that_goes_on(whole, tmp_path):
    """And another schedule of it: at the last step of a cycle it is at its least."""
    shutil.copytree(whole, tmp_path / "run")
    schedule = "model.params.scheduler_config.params"
    words = ("-r", tmp_path / "run", "--no-test", "--max_steps", 15, "model.base_learning_rate=1e-9")
    words += (f"{schedule}.cycle_lengths=[14]", f"{schedule}.f_min=[0.5]")
    assert run([sys.executable, "main.py", *map(str, words)]).returncode == 0
    with open(tmp_path / "run/csv/version_1/metrics.csv") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row.get("lr")]
    assert rates[-1] == pytest.approx(0.5e-9)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((), marks=pytest.mark.slow, id="hand"),
        pytest.param(("-m", "torch.distributed.run", "--nproc_per_node", "2"), id="torchrun"),
    ],
)
def test_two_processes_learn_what_one_does(launcher, whole, photos, tmp_path):
    """Plain DDP, batch 2 in each of two processes, against batch 4 in one: the same first losses."""
    words = command(photos, tmp_path, "data.params.batch_size=2", "--devices", 2, "--strategy", "ddp", "--max_steps", 5)
    done = run([words[0], *launcher, *words[1:]])
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    divided, alone = losses(folder), losses(whole)
    averages = read_checkpoint(folder / "checkpoints/last.ckpt", ema=True)
    assert not torch.equal(
        averages["model.diffusion_model.out.2.weight"],
        read_checkpoint(folder / "checkpoints/last.ckpt")["model.diffusion_model.out.2.weight"],
    )
    assert list(divided) == list(range(5))
    for step, loss in divided.items():
        assert loss == pytest.approx(alone[step], rel=1e-5)


def test_a_full_disk_leaves_the_checkpoint_before(whole, tmp_path):
    """Files may not grow beyond a megabyte: the run ends with a sentence, and last.ckpt is what it was."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = folder / "checkpoints/last.ckpt"
    before = last.read_bytes()
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))}
    done = run([sys.executable, "main.py", "-r", str(folder), "--max_steps", "18"], **limit)
    assert done.returncode == 2 and "last.ckpt: cannot be written" in done.stderr
    assert "the previous one is untouched" in done.stderr.splitlines()[-1]
    assert last.read_bytes() == before and not list(last.parent.glob(".partial*"))


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_loss_that_is_not_finite(photos, tmp_path, what):
    """With a learning rate without bounds it comes in the second step."""
    words = (
        "model.base_learning_rate=1e30",
        "model.params.scheduler_config=null",
        "--max_steps",
        3,
        "--nonfinite",
        what,
    )
    done = run(command(photos, tmp_path, *words, "lightning.checkpoint.every_n_steps=1"))
    (folder,) = tmp_path.iterdir()
    if what == "skip":
        assert done.returncode == 0 and "is not finite: the step is skipped" in done.stderr
    else:
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and "the loss of step 1 is not finite" in last
        assert f"the last checkpoint is {folder}/checkpoints/last.ckpt" in last
        named = {word.strip(" ;,:)") for word in last.split() if word.strip(" ;,:)").endswith(".png")}
        assert len(named) == 4 and all(Path(name).exists() for name in named)


def test_a_folder_that_holds_a_run_is_not_overwritten(whole, photos, tmp_path, script):
    code, _, err = script("main", *command(photos, tmp_path, "--project", whole)[2:])
    assert code == 2 and "contains a run already" in err
