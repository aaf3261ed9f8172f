"""scripts/eval_fid_qs_clip.py: scores, table and page of a folder of results, against the networks' own libraries."""

import hashlib
import json
import shutil
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm.evaluation.benchmark import mean_interval
from ldm.evaluation.metrics import METRICS
from tests.conftest import ROOT
from tests.evaluation.conftest import CLIP, COUNT, DINO, run


def test_intervals_agree_with_scipy():
    from scipy.stats import bootstrap

    x = np.random.default_rng(0).gamma(2.0, size=300)
    other = bootstrap((x,), np.mean, n_resamples=5000, method="percentile", vectorized=True).confidence_interval
    assert mean_interval(x) == pytest.approx(tuple(other), abs=0.03)
    assert mean_interval(x) == mean_interval(x.copy())  # the resampling is seeded
    assert mean_interval(x, seed=1) != mean_interval(x)


def test_pictures_come_from_other_processes_without_a_file_handle_each(place, weights):
    """64 file handles are enough."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from pathlib import Path
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.evaluation import features
from ldm.evaluation.cases import PreparedCases
from ldm.evaluation.folder import batches
from ldm.evaluation.scorers import ClipScore, PixelScores
clip = features.load_clip({str(weights / "clip.safetensors")!r}, model={CLIP!r})
bench = COCOImageDataset({str(place.bench)!r})
cases = PreparedCases(Path({str(place.results)!r}), bench, [ClipScore(clip), PixelScores(["psnr"])])
items = [item for batch in batches(cases, 7, "") for item in batch]
assert [item.id for item in items] == bench.ids and len(items) == {COUNT}
for item in items:
    (region, reference), values = item.inputs
    assert region.shape == reference.shape == (3, 224, 224) and values["psnr"] > 0, item
"""
    done = run([sys.executable, "-c", code], ROOT)
    assert done.returncode == 0, done.stderr


def test_the_table(evaluated, weights):
    out, summary, outdir = evaluated
    assert "published" not in out and "CLIP is ViT-S-32 here" in out and "FID is too high" in out
    assert f"{COUNT} of {COUNT} cases" in out and "FID and QS use CLIP's features" in out
    rows = {row["key"]: row for row in summary["metrics"]}
    assert list(rows) == [metric.key for metric in METRICS]
    for row in rows.values():
        assert row["cases"] == COUNT and np.isfinite(row["value"]), row
        assert row["name"] in out and (row["low"] is None or row["low"] <= row["value"] <= row["high"])
    for key in ("qs", "clip_score", "dino", "psnr", "ssim", "lpips", "seam"):
        assert rows[key]["value"] == pytest.approx(np.mean([case[key] for case in summary["per_case"]]))
        assert rows[key]["low"] < rows[key]["value"] < rows[key]["high"]
    assert summary["weights"]["dino"] == {
        "model": DINO, "file": "dino.pth", "sha256": hashlib.sha256((weights / "dino.pth").read_bytes()).hexdigest()
    }  # fmt: skip
    assert summary["settings"]["scale"] == 5 and len(summary["mixture"]["sha256"]) == 64
    assert {kind: each["pictures"] for kind, each in summary["real"].items()} == {"clip": 40, "inception": 40}
    page = (outdir / "index.html").read_text()
    assert all(case["id"] in page for case in summary["per_case"]) and page.count("data:image/") >= 4 * COUNT


def test_numbers_are_those_of_other_tools(evaluated, place, weights):
    """A distance between sets and the score of a case, by torchmetrics and open_clip."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    _, summary, _ = evaluated
    bench, results = place.bench, place.results
    model, _, preprocess = open_clip.create_model_and_transforms(CLIP)
    model.load_state_dict(load_file(weights / "clip.safetensors"))

    class Features(torch.nn.Module):
        num_features = 384

        def forward(self, x):
            return model.encode_image(x)

    other = FrechetInceptionDistance(Features()).eval()
    model.eval()
    for folder, real in ((bench / "test2017_square", True), (results, False)):
        images = torch.stack([preprocess(Image.open(path)) for path in sorted(folder.iterdir())])
        other.update(images, real=real)
    row = next(row for row in summary["metrics"] if row["key"] == "fid_clip")
    assert row["value"] == pytest.approx(other.compute().item(), rel=1e-3)

    case = summary["per_case"][7]
    ref = Image.open(bench / f"Ref_3500/{case['id']}_ref.png")
    mask = np.asarray(Image.open(bench / f"Mask_bbox_3500/{case['id']}_mask.png"))
    (r0, *_, r1), (c0, *_, c1) = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    result = Image.open(results / f"{case['id']}.png")
    both = []
    for picture, box in ((result, (c0, r0, c1, r1)), (ref, (0, 0, *ref.size))):
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255.0
        x = (x - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(
            open_clip.OPENAI_DATASET_STD
        ).view(3, 1, 1)
        x = torch.nn.functional.interpolate(x[..., box[1] : box[3], box[0] : box[2]], (224, 224), mode="bilinear")
        both.append(model.encode_image(x)[0])
    wanted = 100 * torch.nn.functional.cosine_similarity(*both, dim=0).item()
    assert case["clip_score"] == pytest.approx(wanted, abs=1e-3)


def test_scores_are_reproducible_and_do_not_depend_on_batches(evaluated, here, script, tmp_path):
    _, summary, _ = evaluated
    assert len(list(here.bench.glob("test2017_square-*.npz"))) == 2  # the stored statistics
    found = []
    for name, size in (("again", 16), ("other", 7)):
        _, *words = here("eval_fid_qs_clip", "--outdir", tmp_path / name, "--batch_size", size, "--most", 2)
        assert script("eval_fid_qs_clip", *words)[0] == 0
        found.append(json.loads((tmp_path / name / "scores.json").read_text()))
    again, other = found
    assert {**again, "date": 0} == {**summary, "date": 0}
    for row, wanted in zip(other["metrics"], summary["metrics"], strict=True):
        assert row["value"] == pytest.approx(wanted["value"], rel=1e-4, abs=0), row["key"]


def test_missing_damaged_and_wrong_results(here, script, tmp_path):
    broken, results = tmp_path / "broken", here.results
    shutil.copytree(results, broken)
    first, second, third, fourth, *_ = sorted(broken.iterdir())
    first.unlink()
    second.write_bytes(b"no picture")
    Image.new("RGB", (64, 128)).save(third)
    fourth.write_bytes(fourth.read_bytes()[:-200])  # its header is intact
    few = ["--skip", "fid_clip", "qs", "clip_score", "fid_inception", "kid", "dino", "lpips"]
    _, *words = here("eval_fid_qs_clip", "--outdir", tmp_path / "out", *few, "--results", broken)
    code, _, err = script("eval_fid_qs_clip", *words)
    assert code == 2 and "4 of 30 cases cannot be scored" in err and "--allow_missing" in err
    assert not (tmp_path / "out").exists()
    code, out, err = script("eval_fid_qs_clip", *words, "--allow_missing")
    assert code == 0 and f"{COUNT - 4} of {COUNT} cases" in out, err
    summary = json.loads((tmp_path / "out/scores.json").read_text())
    problems = {each["id"]: each["problem"] for each in summary["cases"]["problems"]}
    assert list(problems) == [path.stem for path in (first, second, third, fourth)]
    for path, word in (
        (first, "does not exist"),
        (second, "not a picture"),
        (third, "64 x 128"),
        (fourth, "cannot be read"),
    ):
        assert word in problems[path.stem]
    assert all(row["cases"] == COUNT - 4 for row in summary["metrics"]) and not summary["weights"]
    for path in (first, second, third):
        shutil.copy(results / path.name, path)
    code, _, err = script("eval_fid_qs_clip", *words)
    assert code == 2 and "1 of 30 cases" in err and "run scripts/inference_test_bench.py again" in err


@pytest.mark.parametrize(("words", "sentence"), [
    (["--skip", "nothing"], "--skip nothing is no metric: use one of"),
    (["--skip", *(metric.key for metric in METRICS)], "--skip leaves nothing to measure"),
    (["--results", "absent"], "--results absent does not exist: make it with"),
    (["--bench", "absent"], "absent/GT_3500 has no <id>_GT.png: name"),
    (["--results", "results/test_bench"], "name results/test_bench/results"),
    (["--outdir", "results/test_bench/evaluation", "--skip", "psnr"], "has scores that would be lost (psnr)"),
    (["--batch_size", "0"], "--batch_size 0 is out of range"),
    (["--gmm", "absent.npz"], "mixture absent.npz does not exist: make it with"),
    (["--real", "absent"], "folder of real pictures absent does not exist: make it with"),
    (["--clip_model", "none"], "--clip_model none is unknown to open_clip: check the name"),
    (["--dino_model", "none"], "--dino_model none is unknown to timm: check the name"),
    (["--clip_weights", "configs/v1.yaml"], "is neither"),
])  # fmt: skip
def test_what_a_user_can_get_wrong(words, sentence, here, script, tmp_path, evaluated):
    _, *command = here("eval_fid_qs_clip", "--outdir", tmp_path / "out", *words)
    code, _, err = script("eval_fid_qs_clip", *command)
    assert code == 2 and sentence in err and err.strip().count("\n") <= 1, err
    assert not (tmp_path / "out").exists()


def test_masks_without_edge_or_background(here, script, tmp_path):
    """A white mask keeps nothing, so its case has no background scores and does not enter their means."""
    shutil.copytree(here.bench, tmp_path / "bench", ignore=shutil.ignore_patterns("*.npz", "test2017_square"))
    first = min((tmp_path / "bench/Mask_bbox_3500").iterdir())
    Image.new("L", (128, 128), 255).save(first)
    (tmp_path / "made").mkdir()
    shutil.copy(here.results.parent / "settings.json", tmp_path / "made")
    shutil.copytree(here.results, tmp_path / "made/results")
    few = ["--skip", "fid_clip", "qs", "fid_inception", "kid"]
    more = ("--bench", tmp_path / "bench", "--outdir", tmp_path / "out", "--results", tmp_path / "made/results", *few)
    _, *words = here("eval_fid_qs_clip", *more)
    code, _, err = script("eval_fid_qs_clip", *words)
    assert code == 2 and "belong to another benchmark" in err
    (tmp_path / "made/settings.json").unlink()
    assert script("eval_fid_qs_clip", *words)[0] == 0
    summary = json.loads((tmp_path / "out/scores.json").read_text())
    counts = {row["key"]: row["cases"] for row in summary["metrics"]}
    assert counts == {"clip_score": 30, "dino": 30, "psnr": 29, "ssim": 29, "lpips": 29, "seam": 29, "copy_paste": 30}
    assert summary["per_case"][0]["psnr"] is None and summary["per_case"][0]["clip_score"] is not None
    for path in list((tmp_path / "bench/GT_3500").iterdir())[1:]:
        path.unlink()
    code, _, err = script("eval_fid_qs_clip", *words, "--allow_missing")
    assert code == 2 and "1 results that can be scored: make at least two" in err
