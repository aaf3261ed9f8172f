"""What the tests share: the golden model and reading of golden files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"


class Golden:
    """`golden("unet")["in/x"]`: arrays of one golden file, floats and ints as tensors."""

    def __init__(self, name: str):
        self.arrays = np.load(GOLDEN / f"{name}.npz")

    def __getitem__(self, key: str):
        array = self.arrays[key]
        return array if array.dtype.kind == "U" else torch.from_numpy(array)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays


@pytest.fixture(scope="session")
def golden():
    return Golden


@pytest.fixture(scope="session")
def golden_config() -> dict:
    return {"model": json.loads((GOLDEN / "config.json").read_text())["model"]}


@pytest.fixture(scope="session")
def model(golden_config):
    """The golden toy model. Shared: tests leave its weights, dtype and mode as they are."""
    from ldm.checkpoint import load_model

    return load_model(golden_config, GOLDEN / "model.safetensors")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
