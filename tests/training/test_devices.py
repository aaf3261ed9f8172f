"""Devices and precision of a run, from its config and flags."""

import pytest
import torch

from ldm.training.devices import parse_gpus, trainer_options
from ldm.util import UserError, load_config
from tests.conftest import ROOT


@pytest.mark.parametrize(("gpus", "nodes", "expected"), [
    ("0,1,2,3,4,5,6,7", 1, list(range(8))),
    ("0,", 1, [0]),
    ("0,1,...,63", 8, 8),
    ("0,1,...,7", 1, list(range(8))),
    ("0,2,...,6", 1, [0, 2, 4, 6]),
    (3, 1, [3]),
])  # fmt: skip
def test_gpus(gpus, nodes, expected):
    assert parse_gpus(gpus, nodes) == expected


@pytest.mark.parametrize(("gpus", "nodes"), [
    *(("0,1,...", 1), ("...,3", 1), ("a", 1), ("0,0", 1), ("-1", 1), ("0,1,2", 2), ("0,...,3", 1), ("", 1)),
    ("0,1,...,3,9", 1),
])  # fmt: skip
def test_gpus_that_cannot_be(gpus, nodes):
    with pytest.raises(UserError, match="--gpus"):
        parse_gpus(gpus, nodes)


def test_the_published_config_asks_for_eight_gpus(monkeypatch):
    config = load_config(ROOT / "configs/v1.yaml")
    with pytest.raises(UserError, match="PyTorch finds no GPU"):
        trainer_options(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert trainer_options(config) == {
        "max_epochs": 40,
        "num_nodes": 1,
        "accelerator": "gpu",
        "devices": list(range(8)),
    }
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match=r"this machine has 4 GPUs.*--num_nodes"):
        trainer_options(config)


@pytest.mark.parametrize(("has", "expected"), [(torch.bfloat16, "bf16-mixed"), (torch.float32, "32-true")])
def test_no_half_precision_where_the_cpu_has_none(has, expected, monkeypatch):
    config = load_config(ROOT / "configs/mini/first_stage.yaml")
    config["lightning"]["trainer"]["accelerator"] = "cpu"
    monkeypatch.setattr("ldm.training.devices.preferred_half_dtype", lambda device: has)
    assert trainer_options(config)["precision"] == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config["lightning"]["trainer"]["accelerator"] = "gpu"
    assert trainer_options(config)["precision"] == "bf16-mixed"
