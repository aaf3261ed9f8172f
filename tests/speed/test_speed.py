"""The benchmarks of an edit and of training: what they measure, not how fast it is."""

import json

import pytest
import torch

from ldm.checkpoint.load import empty_model
from ldm.fast.unet import FastResBlock
from ldm.speed.allocators import compare_allocators
from ldm.speed.profile import profile_step
from ldm.speed.training import estimate_memory
from ldm.util import load_config
from tests.conftest import ROOT


def test_the_contestants_compute_the_same(script, tmp_path):
    flags = f"--config {ROOT}/configs/tiny.yaml --size 128 --rounds 1 --device cpu --precision full bf16"
    code, _, err = script("benchmark", *flags.split(), "--json", tmp_path / "rows.json")
    assert code == 0, err
    rows = json.loads((tmp_path / "rows.json").read_text())["measured"]
    by = {(row["part"], row["who"]): row for row in rows}
    for part in ("reference", "VAE encode", "guided step", "VAE decode"):  # three implementations of one thing
        for who in ("ours, full", "diffusers, full"):
            assert by[part, who]["rms_difference"] < 1e-4
        assert 1e-4 < by[part, "ours, bf16"]["rms_difference"] < 0.1
    rectangle = [by["guided step, rectangle", who]["rms_difference"] for who in ("ours, full", "ours, bf16")]
    assert rectangle[0] < 1e-4 < rectangle[1] < 0.1
    assert ("guided step, rectangle", "ours, full, plain") not in by
    whole = by["edit, 50 steps, from its parts", "ours, full"]["seconds"]
    assert whole > 51 * by["guided step", "ours, full"]["seconds"]
    code, _, err = script("benchmark", "--size", 63, "--config", ROOT / "configs/tiny.yaml")
    assert code == 2 and "--size 63 does not fit the model: use a multiple of" in err


def test_complete_edits_are_measured_with_presets_too(script, tmp_path):
    flags = f"--config {ROOT}/configs/tiny.yaml --size 64 --rounds 1 --device cpu --precision full --batch_size 2"
    flags += f" --edits --preset draft --json {tmp_path}/rows.json"
    code, out, err = script("benchmark", *flags.split())
    assert code == 0, err
    content = json.loads((tmp_path / "rows.json").read_text())
    assert (content["size"], content["batch_size"]) == (64, 2)
    edits = {row["who"]: row for row in content["measured"] if row["part"] == "edit, measured, 2 at once"}
    assert list(edits) == ["diffusers, full", "ours, full", "ours, full, draft"]
    for row in edits.values():
        assert row["edits_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["ratio"] == pytest.approx(edits["diffusers, full"]["seconds"] / row["seconds"])
    assert out.count("edits/s") == 3


@pytest.mark.integration
def test_a_step_in_two_processes(tmp_path):
    rows = compare_allocators(str(ROOT / "configs/tiny.yaml"), 64, ["full"], 1)
    assert [(row.part, row.who) for row in rows] == [
        ("guided step, full", "as the C library does"),
        ("guided step, full", "memory kept"),
    ]
    assert rows[0].ratio == 1 and rows[1].ratio == pytest.approx(rows[0].seconds / rows[1].seconds)


@pytest.mark.integration
def test_the_memory_of_a_training_step_is_counted_without_allocating_it():
    config = load_config(ROOT / "configs/tiny.yaml")
    estimates = {
        (batch, checkpointing): estimate_memory(config, batch, None, checkpointing)
        for batch in (1, 2)
        for checkpointing in (False, True)
    }
    model = empty_model(config)
    model.setup("fit")
    assert {e.static for e in estimates.values()} == {
        sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())
    }
    assert estimates[1, True].activations < 0.5 * estimates[1, False].activations
    assert 1.8 < estimates[2, False].activations / estimates[1, False].activations < 2.2


@torch.no_grad()
def test_the_profile_counts_operations_by_formula(edit, tmp_path):
    """The residual blocks' operations, counted by hand: a multiplication and an addition for each weight of a
    convolution and each place of its result."""
    rows = {row.part: row for row in profile_step(edit, 64, str(tmp_path / "trace.json.gz"))}
    parts = [row for part, row in rows.items() if part != "step"]
    assert sum(row.flops for row in parts) == rows["step"].flops
    blocks = [m for m in edit.networks.unet.modules() if isinstance(m, FastResBlock)]
    seen = []
    hooks = [
        block.register_forward_hook(lambda m, _, out: seen.append((m, out.shape[0] * out.shape[2] * out.shape[3])))
        for block in blocks
    ]
    profile_step(edit, 64, str(tmp_path / "trace.json.gz"))
    for hook in hooks:
        hook.remove()
    expected = 0
    for block, places in seen[: len(blocks)]:
        convs = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
        expected += sum(2 * conv.weight.numel() * places for conv in convs)
    assert rows["residual blocks"].flops == expected
