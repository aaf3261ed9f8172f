"""Runs of main.py as processes, at toy size."""

import csv
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT


def command(photos, logdir, *words) -> list[str]:
    """The words of main.py at toy size: a smaller UNet than tiny's, 64 x 64 pixels, a log line per step, last.ckpt
    every 2 steps."""
    splits = ("train", "validation", "test")
    return [
        *(sys.executable, "main.py", "--base", "configs/tiny.yaml", "--logdir", str(logdir), "--no-test"),
        f"data.params.dataset_dir={photos}",
        *(f"data.params.{split}.params.image_size=64" for split in splits),
        *(
            "data.params.num_workers=0",
            "model.params.use_ema=true",
            "model.params.unet_config.params.channel_mult=[1,1]",
        ),
        *("lightning.checkpoint.every_n_steps=2", "lightning.images.steps=1", "lightning.images.count=1"),
        *("--max_epochs", "-1", "--max_steps", "14", "--log_every_n_steps", "1", "--enable_progress_bar", "false"),
        *("--enable_model_summary", "false"),
        *map(str, words),
    ]


PIPES = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def run(words, **more) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, **more)


def losses(folder) -> dict[int, float]:
    """Step -> training loss over all starts of a run; later starts override earlier ones."""
    found = {}
    for path in sorted(Path(folder).glob("csv/version_*/metrics.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                if row.get("train/loss_simple"):
                    found[int(row["step"])] = float(row["train/loss_simple"])
    return found


def wait_for_step(folder, process, step):
    """Waits until the log has this step; the run is then in the next one."""
    start = time.time()
    while max(losses(folder), default=-1) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.time() - start < 300
        time.sleep(0.02)
