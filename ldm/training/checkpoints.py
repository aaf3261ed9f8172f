"""Checkpoints of a run: whole or not there, and read without running anything of them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from ldm.checkpoint.lora import Adapter, write_adapter
from ldm.util import UserError

LAST = "last.ckpt"
ADAPTER = "lora.safetensors"


def adapter_beside(path: Path) -> Path:
    """Where a run that trains an adapter puts it: last.ckpt -> lora.safetensors, x.ckpt -> x-lora.safetensors."""
    return path.with_name(ADAPTER if path.name == LAST else f"{path.stem}-{ADAPTER}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is written beside its place and moved there when it is complete and on the disk: a kill or a full
    disk leaves the one before as it was. Reading takes tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{path.name}")
        try:
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
            partial.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
            before = "; the one before is untouched" if path.exists() else ""
            raise UserError(f"checkpoint {path}: cannot be written ({reason}){before}; free some space") from error
        if "lora" in checkpoint:
            write_adapter(Adapter(**checkpoint["lora"]), adapter_beside(path))

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        super().remove_checkpoint(path)
        adapter_beside(Path(path)).unlink(missing_ok=True)

    def load_checkpoint(self, path: str | os.PathLike, map_location: Any = None, weights_only: Any = None) -> dict:
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except FileNotFoundError as error:
            raise UserError(f"checkpoint {path}: there is no such file; check the path") from error
        except Exception as error:  # pickle, zip and torch each have their own
            reason = str(error).split("\n")[0]
            raise UserError(f"checkpoint {path}: is none that a run can go on from ({reason})") from error


class Last(Checkpoint):  # which Lightning calls after all others: the one that minds max_time has then spoken
    """Writes checkpoints/last.ckpt every so many steps, at the end of training, and when the run is told to stop: then,
    after SIGTERM or the first Ctrl-C in any of its processes, the optimizer step under way is finished first."""

    def __init__(self, folder: Path, every_n_steps: int):
        self.path, self.every_n_steps = folder / LAST, every_n_steps
        self.told = False
        self.step = self.saved = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.path = trainer.strategy.broadcast(
            self.path
        )  # processes that were started apart name it by their own clock
        self.step = trainer.global_step
        if trainer.is_global_zero and trainer.ckpt_path and Path(trainer.ckpt_path).name == LAST:
            self._tidy()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def _tell(self, number: int, _: Any) -> None:
        self.told = True
        if number == signal.SIGINT:  # the second one ends it at once
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self.step:  # gradients are being accumulated
            return
        self.step = step
        told = trainer.strategy.reduce_boolean_decision(self.told, all=False)
        # the last step too: at the end of training Lightning counts an epoch that was cut short as done
        if told or step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop:
            self._save(trainer)
        if told:
            trainer._signal_connector.received_sigterm = True  # all processes leave at the end of this batch

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.saved != trainer.global_step:
            self._save(trainer)

    def _tidy(self) -> None:
        """Removes what a run killed after its last.ckpt has left, and, going on from that, will write again."""
        for path in self.path.parent.glob("step*.ckpt"):
            if int(path.name[4:12]) > self.step:
                path.unlink()
                adapter_beside(path).unlink(missing_ok=True)
        for path in self.path.parent.glob(".partial-*"):
            if path.is_dir():  # an adapter's, see staging
                shutil.rmtree(path)
            else:
                path.unlink()

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = trainer.global_step


def best(folder: Path, monitor: str, top_k: int) -> ModelCheckpoint:
    """Keeps the top_k checkpoints with the lowest `monitor`, one candidate per validation."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="step{step:08d}-loss{" + monitor + ":.5f}",
        auto_insert_metric_name=False,
        monitor=monitor,
        mode="min",
        save_top_k=top_k,
        save_last=False,
        save_on_train_epoch_end=False,
    )
