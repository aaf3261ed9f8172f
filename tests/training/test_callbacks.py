"""Callbacks, without a run of main.py."""

import numpy as np
import pytorch_lightning as lightning
import torch

from ldm.training.callbacks import FiniteLoss
from ldm.training.checkpoints import LastCheckpoint


def test_what_a_killed_run_left_goes(tmp_path):
    for name in ("last.ckpt", "step00000004-loss1.ckpt", "step00000009-loss0.5.ckpt", ".partial-last.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / ".partial-abc").mkdir()  # left by a killed write of an adapter
    (tmp_path / ".partial-abc/lora.safetensors").touch()
    last = LastCheckpoint(tmp_path, 5)
    last.step = 4
    last.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step00000004-loss1.ckpt"]


class OneBadBatch(lightning.LightningModule):
    """A weight w with the loss w^2; the third batch's loss is not a number."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.w.item())
        return (self.w**2).sum() * (float("nan") if batch_idx == 2 else 1.0)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_a_skipped_step_leaves_the_weights_alone():
    module = OneBadBatch()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[FiniteLoss(True, None)],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(6, 1)))
    assert module.seen[2] == module.seen[3] and len(set(module.seen)) == 5
    assert np.isfinite(module.seen).all() and module.seen[5] < module.seen[3] < module.seen[1]
