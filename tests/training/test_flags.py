"""Flags of main.py and mistakes in them."""

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no config is named: add --base"),
        (("--base", "nowhere.yaml"), "nowhere.yaml"),
        (("--no-test", "model.params.timesteps", "--base", "configs/tiny.yaml"), "is neither a flag nor key=value"),
        (
            ("--base", "configs/tiny.yaml", "data.params.train.params.dataset_dir=nowhere"),
            "nowhere has no boxes for train: prepare them",
        ),
        (("--base", "configs/tiny.yaml", "--gpus", "0,1"), "PyTorch finds no GPU that it can use"),
        (("--base", "configs/tiny.yaml", "--precision", "7"), "lightning.trainer"),
        (
            ("--base", "configs/tiny.yaml", "max_steps=3"),
            "max_steps=3 begins with none of model, data, lightning: correct the key",
        ),
        (("--base", "configs/tiny.yaml", "--precision", "32", "lightning.images.colour=1"), "lightning.images"),
        (("-r", "nowhere"), "nowhere, which --resume needs, is missing: name"),
        (("--base", "configs/tiny.yaml", "--precision", "32", "model.params.monitor=val/nope"), "monitor is val/nope"),
        (("--base", "configs/tiny.yaml", "--gpus", "0", "--devices", "2"), "does not go with --devices"),
        (("--base", "configs/tiny.yaml", "--num_nodes", "2"), "MASTER_ADDR and MASTER_PORT"),
        (("--base", "configs/tiny.yaml", "--precision", "32", "--val_check_interval", "1000"), "val_check_interval"),
        (("--base", "configs/v1.yaml", "--accelerator", "cpu"), "has no boxes for train"),
    ],
)
def test_mistakes(words, message, photos, tmp_path, script, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = list(words)
    if "--precision" in words or "--gpus" in words:
        words.append(f"data.params.dataset_dir={photos}")
    code, _, err = script("main", *words, *(("--logdir", tmp_path) if "-r" not in words else ()))
    assert code == 2 and message in err.splitlines()[-1], err
    assert "Traceback" not in err


def test_help_is_readable(script):
    code, out, _ = script("main", "--help")
    assert code == 0 and len(out.splitlines()) < 75
    for flag in (
        "--base",
        "--resume",
        "--gpus",
        "--devices",
        "--num_nodes",
        "--precision",
        "--strategy",
        "--max_steps",
    ):
        assert flag in out
    assert "--detect_anomaly" not in out
