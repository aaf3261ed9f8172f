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
def undisturbed(photos, tmp_path_factory):
    """The folder of an undisturbed run."""
    logs = tmp_path_factory.mktemp("whole")
    done = run(command(photos, logs))
    assert done.returncode == 0, done.stderr
    (folder,) = logs.iterdir()
    assert list(losses(folder)) == list(range(14))
    return folder


def test_a_run_leaves_what_it_promises(undisturbed):
    assert sorted(path.name for path in undisturbed.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "csv",
        "images",
        "tensorboard",
    ]
    assert Image.open(undisturbed / "images/step00000001.png").size == (5 * 258 - 2, 256)
    assert list(undisturbed.glob("tensorboard/events*"))
    names = sorted(path.name for path in undisturbed.glob("checkpoints/*"))
    assert names[0] == "last.ckpt" and len(names) == 3  # and the best of two validations
    saved = OmegaConf.load(undisturbed / "config.yaml")
    assert saved.model.params.use_ema and saved.lightning.seed == 23 and saved.lightning.trainer.max_steps == 14
    with open(undisturbed / "csv/version_0/metrics.csv") as file:
        columns = set(csv.DictReader(file).fieldnames)
    assert {"train/loss_simple", "val/loss_simple", "val/loss_simple_ema", "samples/s", "lr"} <= columns


def test_its_checkpoint_edits(undisturbed, example):
    from ldm.pipeline import PaintByExample

    pictures = []
    for ema in (False, True):
        tensors = read_checkpoint(undisturbed / "checkpoints/last.ckpt", ema=ema)
        write_checkpoint(tensors, undisturbed / "small.safetensors")
        edit = PaintByExample.load(undisturbed / "config.yaml", undisturbed / "small.safetensors", device="cpu")
        pictures.append(np.asarray(edit(**example, steps=2, height=64, width=64, progress=False)))
    (undisturbed / "small.safetensors").unlink()
    assert pictures[0].shape == (400, 600, 3) and (pictures[0] != pictures[1]).any()


def test_a_killed_run_goes_on_exactly(undisturbed, photos, tmp_path):
    """After kill -9 in the first epoch and SIGTERM in the second, losses and checkpoint equal the undisturbed run's."""
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
    assert not [word for word in ("litlogger", "TPU", "weights_only", "LeafSpec") if word in done.stdout + done.stderr]
    assert losses(folders[0]) == losses(undisturbed)
    kept = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (undisturbed, folders[0])]
    assert all(torch.equal(t, kept[1]["state_dict"][name]) for name, t in kept[0]["state_dict"].items())
    assert any(name.startswith("model_ema.") for name in kept[0]["state_dict"])
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in kept]
    assert all(torch.equal(t, moments[1][i][key]) for i, state in moments[0].items() for key, t in state.items())
    assert kept[0]["lr_schedulers"] == kept[1]["lr_schedulers"]


@pytest.mark.slow
def test_a_run_that_reached_its_last_step_goes_on_exactly(undisturbed, photos, tmp_path):
    """It stopped at step 9, in the middle of an epoch, and continues with more steps."""
    assert run(command(photos, tmp_path, "--max_steps", 9)).returncode == 0
    (folder,) = tmp_path.iterdir()
    done = run([sys.executable, "main.py", "-r", str(folder), "--no-test", "--max_steps", "14"])
    assert done.returncode == 0, done.stderr
    assert losses(folder) == losses(undisturbed)


@pytest.mark.slow
def test_accumulated_gradients_are_not_lost(photos, tmp_path):
    """A step has two batches. After Ctrl-C at any time, a resumed run ends with the weights of an undisturbed run."""
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
def test_epochs_cut_short_go_on_exactly(words, undisturbed, photos, tmp_path):
    """Epochs are limited to 3 batches, or the run ends by --max_time."""
    limited = words[0] == "--limit_train_batches"
    reference = losses(undisturbed)
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


def test_another_learning_rate_for_a_run_that_goes_on(undisturbed, tmp_path):
    """The schedule changes, too: at the last step of a cycle the rate has its minimum."""
    shutil.copytree(undisturbed, tmp_path / "run")
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
def test_two_processes_learn_what_one_does(launcher, undisturbed, photos, tmp_path):
    """Plain DDP with batch 2 in each of two processes has the same first losses as batch 4 in one process."""
    words = command(photos, tmp_path, "data.params.batch_size=2", "--devices", 2, "--strategy", "ddp", "--max_steps", 5)
    done = run([words[0], *launcher, *words[1:]])
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    divided, alone = losses(folder), losses(undisturbed)
    averages = read_checkpoint(folder / "checkpoints/last.ckpt", ema=True)
    assert not torch.equal(
        averages["model.diffusion_model.out.2.weight"],
        read_checkpoint(folder / "checkpoints/last.ckpt")["model.diffusion_model.out.2.weight"],
    )
    assert list(divided) == list(range(5))
    for step, loss in divided.items():
        assert loss == pytest.approx(alone[step], rel=1e-5)


def test_a_full_disk_leaves_the_checkpoint_before(undisturbed, tmp_path):
    """With files limited to a megabyte, the run ends with one sentence, and last.ckpt is unchanged."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    last = folder / "checkpoints/last.ckpt"
    before = last.read_bytes()
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))}
    done = run([sys.executable, "main.py", "-r", str(folder), "--max_steps", "18"], **limit)
    assert done.returncode == 2 and "last.ckpt cannot be written" in done.stderr
    assert "the previous one is untouched" in done.stderr.splitlines()[-1]
    assert last.read_bytes() == before and not list(last.parent.glob(".partial*"))


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_loss_that_is_not_finite(photos, tmp_path, what):
    """A huge learning rate makes it infinite in the second step."""
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


def test_a_folder_that_holds_a_run_is_not_overwritten(undisturbed, photos, tmp_path, script):
    code, _, err = script("main", *command(photos, tmp_path, "--project", undisturbed)[2:])
    assert code == 2 and "contains a run already" in err
