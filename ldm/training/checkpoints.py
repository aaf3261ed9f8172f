"""Checkpoints of a run: written atomically, and loaded without running any code from them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from ldm.checkpoint.adapters import Adapter, write_adapter
from ldm.checkpoint.detail import write_detail
from ldm.files import replacing, save_pickled
from ldm.util import UserError

LAST = "last.ckpt"
WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {  # key of a checkpoint -> writes its file for inference
    "lora": lambda content, path: write_adapter(Adapter(**content), path),
    "detail": lambda content, path: write_detail(content["settings"], content["tensors"], path),
}


def adapter_beside(path: Path, kind: str = "lora") -> Path:
    """The adapter's file next to a checkpoint: last.ckpt -> lora.safetensors, x.ckpt -> x-lora.safetensors."""
    return path.with_name(f"{kind}.safetensors" if path.name == LAST else f"{path.stem}-{kind}.safetensors")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, flushes it to the disk and then renames it, so that a kill or a full
    disk leaves the previous checkpoint untouched. Loads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as partial:
                save_pickled(checkpoint, partial)
        except OSError as error:
            previous = "; the previous one is untouched" if path.exists() else ""
            raise UserError(
                f"checkpoint {path} cannot be written ({error.strerror}{previous}): free some space"
            ) from error
        for kind, write in WRITERS.items():
            if kind in checkpoint:
                write(checkpoint[kind], adapter_beside(path, kind))

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        super().remove_checkpoint(path)
        for kind in WRITERS:
            adapter_beside(Path(path), kind).unlink(missing_ok=True)

    def load_checkpoint(self, path: str | os.PathLike, map_location: Any = None, weights_only: Any = None) -> dict:
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except FileNotFoundError as error:
            raise UserError(f"checkpoint {path} does not exist: check the path") from error
        except Exception as error:  # pickle, zipfile and torch raise errors of many types
            reason = str(error).split("\n")[0]
            raise UserError(f"checkpoint {path} cannot be resumed from ({reason}): name a run's last.ckpt") from error


class LastCheckpoint(Checkpoint):
    """Writes checkpoints/last.ckpt every `every_n_steps` optimizer steps, at the end of training, and when the run is
    stopped: after SIGTERM or the first Ctrl-C in any process, the current optimizer step is finished first.

    It derives from Lightning's Checkpoint because Lightning calls those callbacks last: by then the callback that
    enforces max_time has decided whether this step is the final one."""

    def __init__(self, folder: Path, every_n_steps: int):
        self.path, self.every_n_steps = folder / LAST, every_n_steps
        self.stop_requested = False
        self.step = self.saved_step = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # processes that were started separately would each name the run's folder by their own clock
        self.path = trainer.strategy.broadcast(self.path)
        self.step = trainer.global_step
        if trainer.is_global_zero and trainer.ckpt_path and Path(trainer.ckpt_path).name == LAST:
            self.remove_leftovers()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, _: Any) -> None:
        self.stop_requested = True
        if number == signal.SIGINT:  # a second Ctrl-C ends the run at once
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self.step:  # gradients are being accumulated
            return
        self.step = step
        stop = trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)
        # also after the last step: when training ends, Lightning counts an interrupted epoch as completed
        if stop or step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop:
            self._save(trainer)
        if stop:
            trainer._signal_connector.received_sigterm = True  # all processes leave at the end of this batch

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.saved_step != trainer.global_step:
            self._save(trainer)

    def remove_leftovers(self) -> None:
        """Remove the files that a killed run wrote after its last.ckpt: the resumed run writes them again."""
        for path in self.path.parent.glob("step*.ckpt"):
            if int(path.name[4:12]) > self.step:
                path.unlink()
                for kind in WRITERS:
                    adapter_beside(path, kind).unlink(missing_ok=True)
        for path in self.path.parent.glob(".partial-*"):
            if path.is_dir():  # of an unfinished adapter, see ldm.files.staging
                shutil.rmtree(path)
            else:
                path.unlink()

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step


def best_checkpoints(folder: Path, monitor: str, top_k: int) -> ModelCheckpoint:
    """A callback that keeps the `top_k` checkpoints with the lowest `monitor`; each validation gives one candidate."""
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
