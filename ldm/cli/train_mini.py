"""Train a miniature model from nothing in about a given time, and score it.

    paint-by-example train-mini --minutes 9     # on a machine with a GPU and about 16 cores
    paint-by-example train-mini --rehearse      # whether everything fits together: a tiny world, on the CPU

Does in --outdir what `make mini` does, with larger batches: draws the world, trains autoencoder, CLIP and oracle at the
same time, encodes the latents, trains prior and model, and prints the table. The time that is left is divided among
the stages that are left; only the trainings adapt to it, and spread their learning rates' schedules over their shares
(lightning.minutes).

<outdir>/result has the weights, in files of at most 15 MiB that are read by the name of the first, the curves of all
losses, and the table. scripts/train_mini.py is the same command."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.files import save_tensors, staging
from ldm.util import PACKAGE, UserError, cores

SHARES = {"world": 13, "parts": 28, "latents": 9, "prior": 9, "model": 28, "table": 13}  # of the time
START_UP = 0.2  # minutes from a command's start to its first training step, and from its last to its end
FILE_BYTES = 15 * 2**20  # of a file of weights, at most: small enough for any upload
PATIENCE = 30  # seconds that a command has to end itself
MODEL, PRIOR = "configs/mini/paint_by_example.yaml", "configs/mini/prior.yaml"
LATENTS = "configs/latents.yaml"
RATE = "model.base_learning_rate=1e-3"  # of batches of 512
FIRST_STAGE, LARGER = "configs/mini/first_stage.yaml", "configs/mini/first_stage_128.yaml"
SIMPLE = ("train/loss_simple", "val/loss_simple_ema")
LOSSES = {  # of each training: the names of its losses in training and in validation
    "first_stage": ("train/rec_loss", "val/rec_loss"),
    "first_stage_128": ("train/rec_loss", "val/rec_loss"),
    "clip": ("train/loss", "val/loss"),
    "oracle": ("train/loss", "val/loss"),
    "prior": SIMPLE,
    "paint_by_example": SIMPLE,
}
REHEARSAL = (  # of a training
    *("--accelerator", "cpu", "--precision", "32-true", "--limit_val_batches", "1"),
    *("lightning.images.steps=2", "lightning.images.count=2", "data.params.num_workers=0"),
)

WEIGHTS = {  # flags of mini-table -> files
    "--ckpt": "logs/mini/mini.safetensors",
    "--oracle": "logs/mini/mini_oracle.safetensors",
    "--clip": "logs/mini/clip/clip.safetensors",
}
TABLE, LOG = "logs/mini/table", "log"  # folders in --outdir

Command = list[str]  # of `paint-by-example`
Chain = list[Command]  # one after the other


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--minutes", type=float, help="for everything (9; with --rehearse 3)")
    p.add_argument("--outdir", type=Path, default=Path("logs/train-mini"), help="a new folder (%(default)s)")
    p.add_argument("--compile", action="store_true", help="compile prior and model: a slow start, then faster steps")
    p.add_argument("--rehearse", action="store_true", help="tiny data and batches, on the CPU")
    return p


@dataclass(frozen=True)
class Clock:
    """Divides the time until `end`, by time.monotonic, among the phases."""

    end: float

    def minutes(self, phase: str) -> float:
        """What a phase that begins now gets of the time that is left."""
        names = list(SHARES)
        shares = [SHARES[name] for name in names[names.index(phase) :]]
        left = max(0.0, self.end - time.monotonic())
        return left / 60 * shares[0] / sum(shares)


def phases(opt: argparse.Namespace, clock: Clock) -> Iterator[list[Chain]]:
    """The chains of commands of each phase before the table, which run at the same time. A phase is planned when the
    one before it has ended."""
    tiny = ["--train", "24", "--validation", "6", "--test", "4", "--pretraining", "12", "--cases", "6", "--real", "30"]
    world = ["make-miniworld", *(tiny if opt.rehearse else [])]
    yield [[world, ["prepare", "--dataset_dir", "dataset/miniworld"]]]

    minutes = clock.minutes("parts")
    autoencoder = [
        training(opt, "first_stage", [FIRST_STAGE], minutes / 2, batch=64),
        training(opt, "first_stage_128", [FIRST_STAGE, LARGER], minutes / 2, batch=32),
    ]
    clip = training(opt, "clip", ["configs/mini/clip.yaml"], minutes, batch=128)
    oracle = training(opt, "oracle", ["configs/mini/oracle.yaml"], minutes, batch=128)
    yield [autoencoder, [clip], [oracle]]

    encode = ["prepare-latents", "--base", MODEL, PRIOR, "--epochs", "1" if opt.rehearse else "6"]
    yield [[[*encode, *(["--device", "cpu"] if opt.rehearse else ["data.params.batch_size=64"])]]]

    networks = ["--compile"] if opt.compile else []
    prior = training(opt, "prior", [MODEL, PRIOR, LATENTS], clock.minutes("prior"), 512, RATE)
    last = "logs/mini/{}/checkpoints/last.ckpt"
    wide = ["--input", last.format("prior"), "--output", "logs/mini/prior-9channel.safetensors"]
    yield [[[*prior, *networks], ["modify", "--ema", *wide]]]

    model = training(opt, "paint_by_example", [MODEL, LATENTS], clock.minutes("model"), 512, RATE)
    yield [[[*model, *networks]]]

    yield [
        [["convert", "--ema", "--half", last.format("paint_by_example"), WEIGHTS["--ckpt"]]],
        [["convert", "--half", last.format("oracle"), WEIGHTS["--oracle"]]],
    ]


def scoring(opt: argparse.Namespace) -> Command:
    """The command of the table."""
    weights = [word for each in WEIGHTS.items() for word in each]
    few = ["--steps", "2", "--batch_size", "6", "--device", "cpu"] if opt.rehearse else []
    return ["mini-table", *weights, "--outdir", TABLE, *few]


def training(
    opt: argparse.Namespace, name: str, configs: Sequence[str], minutes: float, batch: int, *overrides: str
) -> Command:
    """The command of a training that ends after about `minutes`, start-up included, but not before its first step.

    batch: samples per step."""
    schedule = "model.params.scheduler_config.params"
    return [
        *("train", "--project", f"logs/mini/{name}", "--base", *configs, "--no-test", "--enable_progress_bar", "false"),
        # a third if start-up would take more than the rest
        f"lightning.minutes={max(0.001, minutes / 3, minutes - START_UP):.4f}",
        *("lightning.trainer.max_steps=-1", "lightning.trainer.val_check_interval=500"),
        *(f"{schedule}.cycle_lengths=[1000]", f"{schedule}.warm_up_steps=[30]"),  # thousandths of its time
        *("lightning.checkpoint.every_n_steps=1000", f"data.params.batch_size={4 if opt.rehearse else batch}"),
        *overrides,
        *(REHEARSAL if opt.rehearse else ()),
    ]


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    if opt.minutes is None:
        opt.minutes = 3.0 if opt.rehearse else 9.0
    check_range(opt, "minutes", 0.1, 10**5)
    import torch

    if not opt.rehearse and not torch.cuda.is_available():
        raise UserError("train-mini needs a GPU, which PyTorch does not find: use make mini, or add --rehearse")
    if opt.outdir.exists():
        raise UserError(f"{opt.outdir} exists: remove it, or name another --outdir")
    start = time.monotonic()
    with staging(opt.outdir) as temporary:
        (temporary / LOG).mkdir()
    for chains in phases(opt, Clock(start + 60 * opt.minutes)):
        run_chains(chains, opt.outdir)
    print(collect(opt.outdir), flush=True)  # before the table, which may fail
    run_chains([[scoring(opt)]], opt.outdir)
    print(collect_table(opt.outdir))
    print(f"wrote {opt.outdir / 'result'} in {(time.monotonic() - start) / 60:.1f} minutes")


def run_chains(chains: Sequence[Chain], folder: Path) -> None:
    """Runs the chains at the same time, as processes in `folder`, with logs in its log/. Raises UserError: a command
    fails; the others are then ended."""
    waiting = [list(chain) for chain in chains]
    running: dict[int, Process] = {}
    try:
        while running or any(waiting):
            for i, chain in enumerate(waiting):
                if i not in running and chain:
                    running[i] = Process.start(chain.pop(0), folder)
                if i in running and running[i].has_ended():
                    del running[i]
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.popen.terminate()
        for process in running.values():
            try:
                process.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.popen.kill()


@dataclass(frozen=True)
class Process:
    """A command that runs."""

    name: str
    popen: subprocess.Popen
    log: Path
    began: float

    @classmethod
    def start(cls, words: Command, folder: Path) -> Process:
        name = Path(words[words.index("--project") + 1]).name if "--project" in words else words[0]
        log = folder / LOG / f"{name}.txt"
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        environment = {"OMP_NUM_THREADS": str(max(1, cores() // 4)), **os.environ, "PYTHONPATH": path}
        with open(log, "a") as output:
            print(*words, file=output, flush=True)
            popen = subprocess.Popen(
                [sys.executable, "-m", "ldm", *words], cwd=folder, env=environment, stdout=output, stderr=output
            )
        return cls(name, popen, log, time.monotonic())

    def has_ended(self) -> bool:
        """Raises UserError: with an error."""
        if self.popen.poll() is None:
            return False
        if self.popen.returncode:
            last = (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1]
            raise UserError(f"{self.name} failed ({last}): see {self.log}")
        print(f"{self.name}: {time.monotonic() - self.began:.0f} s", flush=True)
        return True


def collect(folder: Path) -> str:
    """Writes weights and curves to <folder>/result -> what each training did."""
    from ldm.checkpoint.files import read_file
    from ldm.checkpoint.shards import write_shards
    from ldm.checkpoint.surgery import halve
    from ldm.training.curves import draw_curves, read_curves, write_csv

    runs = folder / "logs/mini"
    rows = [row for name in LOSSES for row in read_curves(name, runs / name)]
    with staging(folder) as temporary:
        result = temporary / "result"
        result.mkdir()
        write_shards(read_file(folder / WEIGHTS["--ckpt"]), result / "mini.safetensors", FILE_BYTES)
        save_tensors(halve(read_file(folder / WEIGHTS["--clip"])), result / "mini_clip.safetensors")
        shutil.copy(folder / WEIGHTS["--oracle"], result)
        write_csv(rows, result / "curves.csv")
        draw_curves(rows, LOSSES).save(result / "curves.png")
    lines = []
    for name, (_, loss) in LOSSES.items():
        of_run = [row for row in rows if row[0] == name]
        values = [value for _, _, _, key, value in of_run if key == loss]
        steps, minutes = max(row[1] for row in of_run), max(row[2] for row in of_run)
        lines.append(f"{name}: {steps + 1:,} steps in {minutes:.2f} minutes, {loss} {values[-1]:.4f}")
    return "\n".join(lines)


def collect_table(folder: Path) -> str:
    """Adds the table and its picture to <folder>/result -> the table."""
    from ldm.miniworld.table import read_rows, table

    with staging(folder / "result") as temporary:
        for name in ("mini.json", "mini.png"):
            shutil.copy(folder / TABLE / name, temporary)
    return table(read_rows(folder / TABLE / "mini.json"))
