"""`make mini` and `make demo`: the miniature model from nothing, and the one that ships; the commands of its table."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file as read_safetensors

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.locate import MINI_CONFIG
from ldm.checkpoint.names import FIRST_CONV
from ldm.conventions import reference_to_tensor
from ldm.data.bench.cocoee import COCOImageDataset, result_path
from ldm.evaluation.clip_score import bounding_box
from ldm.miniworld import presets, probe, solvers
from ldm.miniworld.parts import require_labels
from ldm.miniworld.scores import identity_scores, load_oracle
from ldm.miniworld.table import read_rows
from ldm.models.diffusion.presets import Preset
from ldm.pipeline import PaintByExample
from tests.conftest import ROOT
from tests.documents import commands_of
from tests.miniworld.conftest import make_commands, run_script

SHIPPED = ROOT / "pretrained_models"
DATA_SCRIPTS = ("scripts/make_miniworld.py", "scripts/read_bbox.py")


@pytest.fixture(autouse=True)
def few_references(monkeypatch):
    monkeypatch.setattr(probe, "REFERENCES", 60)


def test_the_whole_chain(world, script, tmp_path, monkeypatch):
    """The commands of `make mini` in their order, with two steps of each training: both autoencoders, CLIP, oracle,
    prior, widened UNet, Paint by Example, conversion, table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert script("read_bbox", "--dataset_dir", world / "world")[0] == 0
    *commands, table = [words for words in make_commands("mini") if words[0] not in DATA_SCRIPTS]
    projects = [words[words.index("--project") + 1] for words in commands if words[0] == "main.py"]
    names = ["first_stage", "first_stage_128", "clip", "oracle", "prior", "paint_by_example"]
    assert projects == [f"logs/mini/{name}" for name in names]
    short = ["--max_steps", 2, "--limit_val_batches", 1, "--accelerator", "cpu", "--enable_progress_bar", False]
    short += ["--precision", 32, "--val_check_interval", 2, f"data.params.dataset_dir={world / 'world'}"]
    short += ["data.params.batch_size=4", "data.params.num_workers=0", "lightning.images.steps=2", "--no-test"]
    short += ["lightning.images.count=2"]
    latents = ["--device", "cpu", f"data.params.dataset_dir={world / 'world'}", "data.params.batch_size=4"]
    more = {"main.py": short, "scripts/prepare_latents.py": latents}
    for words in commands:
        out = run_script(script, [*words, *map(str, more.get(words[0], []))])
        assert words[0] != "main.py" or "trained to step 2" in out
    for name, columns in (("first_stage", 2), ("first_stage_128", 2), ("prior", 4), ("paint_by_example", 5)):
        assert Image.open(tmp_path / f"logs/mini/{name}/images/step00000001.png").width == columns * 258 - 2

    clip = read_safetensors(tmp_path / "logs/mini/clip/clip.safetensors")
    prior, last = (read_checkpoint(f"logs/mini/{name}/checkpoints/last.ckpt") for name in ("prior", "paint_by_example"))
    first_stage = read_checkpoint("logs/mini/first_stage_128/checkpoints/last.ckpt")
    wide = read_checkpoint("logs/mini/prior-9channel.safetensors")
    assert all(
        torch.equal(prior[name], tensor) and torch.equal(last[name], tensor) for name, tensor in first_stage.items()
    )
    for name in ("visual.conv1.weight", "visual.bn1.running_var", "visual.attnpool.c_proj.bias"):
        assert torch.equal(last[f"cond_stage_model.transformer.{name}"], clip[name])
    assert wide[FIRST_CONV].shape[1] == 9 and not wide[FIRST_CONV][:, 4:].any()
    assert last[FIRST_CONV][:, 4:].any()  # trained

    shutil.copytree(world / "bench", tmp_path / "bench")
    assert table[0] == "scripts/mini_table.py"
    out = run_script(script, [*table, "--bench", "bench", "--steps", "2", "--batch_size", "6", "--device", "cpu"])
    rows = json.loads((tmp_path / "logs/mini/table/mini.json").read_text())
    assert list(rows)[:2] == ["photo, unedited", "reference, pasted"] and len(rows) == 6
    assert rows["reference, pasted"]["copy_paste"]["value"] == pytest.approx(1, abs=1e-3)
    assert all(f"| {name} |" in out for name in rows)
    code, shown, err = script("mini_table", "--show", "logs/mini/table/mini.json")
    assert code == 0 and shown.strip() in out, err
    words = ["logs/mini/table/mini.json"] * 2 + ["--bench", "bench", "--name", "both", "--outdir", "logs/mini/both"]
    code, again, err = script("mini_table", "--show", *words)
    assert code == 0 and again == shown, err
    assert Image.open("logs/mini/both/both.png").width == 9 * 130 - 2  # photo, region, reference, six rows
    both = read_rows(tmp_path / "logs/mini/both/both.json")
    assert both["mini, scale 5"].results.samefile("logs/mini/table/mini-scale-5/results")
    load_model(MINI_CONFIG, "logs/mini/mini.safetensors")


def test_the_model_that_ships(script, tmp_path):
    """`make demo`: the objects of the twelve references, which training has not shown, appear in the regions. With the
    learned vector instead of the references they do not."""
    files = {path.name: path.stat().st_size for path in SHIPPED.glob("mini*")}
    added = {"mini_detail.safetensors", "mini_recogniser.safetensors"}
    assert max(files[name] for name in added) < 2e6
    assert sum(size for name, size in files.items() if name not in added) < 40e6
    ((name, *words),) = make_commands("demo", "RELEASED=absent")
    assert name == "scripts/inference_test_bench.py"
    words = [str(ROOT / word) if (ROOT / word).exists() else word for word in words]
    bench = COCOImageDataset(str(ROOT / "examples/mini"))
    oracle = load_oracle(SHIPPED / "mini_oracle.safetensors")
    labels, scores = require_labels(bench), {}
    for scale, best in ((0, ["--best", "1"]), (5, [])):
        outdir = tmp_path / str(scale)
        further = ["--outdir", str(outdir), "--scale", str(scale), "--device", "cpu"]
        run_script(script, [name, *words, *further, *best])
        assert Image.open(outdir / "grid.png").width == 4 * 130 - 2
        regions = []
        for i, case in enumerate(bench.ids):
            r0, r1, c0, c1 = bounding_box(np.asarray(bench.pictures(i)[1]))
            regions.append(oracle.prepare(Image.open(result_path(outdir / "results", case)).crop((c0, r0, c1, r1))))
        found = identity_scores(oracle(regions), [labels[case] for case in bench.ids])
        scores[scale] = {key: value.mean().item() for key, value in found.items()}
    assert scores[5]["colour_error"] < 0.6 * scores[0]["colour_error"], scores
    assert scores[5]["pattern"] > max(0.7, scores[0]["pattern"]), scores
    assert scores[5]["shape"] > max(0.5, scores[0]["shape"]), scores


def test_its_reference_encoder_in_half_precision():
    """It has BatchNorm, whose statistics are buffers rather than parameters."""
    reference = reference_to_tensor(Image.open(ROOT / "examples/mini/Ref_3500/000000000001_ref.png"))[None]
    full, half = (
        PaintByExample.load(MINI_CONFIG, SHIPPED / "mini.safetensors", "cpu", each).networks
        for each in ("full", "bf16")
    )
    with torch.no_grad():
        exact, near = (each.get_learned_conditioning(reference).float() for each in (full, half))
    assert (near - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("command", commands_of("scripts/mini_table.py"), ids=lambda command: command[:60])
def test_the_commands_of_the_pages(command, script, world, individuals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "bench", tmp_path / "test_bench_mini")
    shutil.copytree(individuals / "bench", tmp_path / "test_bench_individuals")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    few = {"plms 50": Preset("plms", 2), "fast": Preset("dpm++", 2, (500, 999))}
    monkeypatch.setattr(presets, "CANDIDATES", few)
    monkeypatch.setattr(solvers, "SOLVERS", {"plms": (2,), "ddim": (2,)})
    monkeypatch.setattr(solvers, "SCALES", (1.0, 5.0))
    words = command.split()
    code, out, err = script("mini_table", *words[2:], "--steps", 2, "--device", "cpu")
    heads = {"test_bench_individuals": "| top-1 of 50 |", "--solvers": "| sampler, steps |"}
    head = next((heads[word] for word in words if word in heads), "| shape |")
    assert code == 0 and head in out, err
