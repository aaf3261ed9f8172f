"""Best of N: the scores against direct computations, the seed that wins, its picture, and where the scores are kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.batch.account import Account, split_finished
from ldm.batch.benchmark import WHOLE
from ldm.batch.runner import BatchOptions, run_jobs, settings_of_job
from ldm.batch.table import Defaults, read_jobs
from ldm.conventions import image_to_tensor, reference_to_tensor
from ldm.editing.best import SEAM_WEIGHT, Attempt, Choice, load_judge, rate
from ldm.editing.inputs import Condition, Inputs
from ldm.editing.marked import MarkedPhoto
from ldm.editing.metadata import read_settings
from ldm.editing.options import Loading, Placement, Sampling, Selection
from ldm.editing.regions import Region
from ldm.methods.token_field import shares_of_regions
from ldm.util import UserError
from ldm.web.request import parse_request
from ldm.web.worker import EditWorker, ModelInfo
from tests.conftest import ROOT

SIZE = {"height": 64, "width": 64}
FILES = [f"{ROOT}/examples/{name}" for name in ("image/example_2.jpg", "mask/example_2.png", "reference/example_2.jpg")]
MODEL = ["--config", ROOT / "configs/tiny.yaml", "--device", "cpu"]


def mean_colours(pictures):
    return torch.stack([torch.from_numpy(np.asarray(each, np.float32)).mean((0, 1)) for each in pictures])


def test_rating_in_closed_form():
    keep = torch.ones(1, 1, 32, 32)
    keep[..., 8:24, 8:24] = 0
    grey, red, green = (np.full((32, 32, 3), colour, np.uint8) for colour in (128, (255, 0, 0), (0, 255, 0)))
    references = torch.stack([reference_to_tensor(Image.fromarray(each), 16) for each in (red, green)])
    seen = Inputs(image_to_tensor(grey)[None], keep, references, (2,))
    painted = torch.where(keep[0] > 0, image_to_tensor(grey), image_to_tensor(red))
    likeness, seam = rate(painted, seen, mean_colours)
    assert likeness == pytest.approx(0.5, abs=1e-6)  # red and red: 1; red and green: 0; the grey around is not seen
    step = (127 + 128 + 128) / 3  # from grey to red, in grey levels; its surroundings are flat
    assert seam == pytest.approx(step + 1, rel=1e-4)
    assert rate(image_to_tensor(grey), seen, mean_colours)[1] == pytest.approx(1, abs=1e-4)
    whole = Inputs(seen.image, torch.zeros_like(keep), references, (2,))
    assert rate(image_to_tensor(red), whole, mean_colours)[1] == 1  # no edge


def test_regions_painted_together_are_rated_one_by_one():
    """Each by its own references: a red and a green one, painted as they should be, and exchanged. What lies between
    them does not count; a region that others cover does not, either."""
    keep, red, green = torch.ones(1, 1, 32, 64), (255, 0, 0), (0, 255, 0)
    keep[..., 8:24, 4:20] = keep[..., 8:24, 44:60] = 0
    picture = np.full((32, 64, 3), 128, np.uint8)
    picture[8:24, 4:20], picture[8:24, 44:60] = red, green
    references = [reference_to_tensor(Image.new("RGB", (32, 32), colour), 16) for colour in (red, red, green)]
    masks = torch.zeros(2, 32, 64, dtype=torch.bool)
    masks[0, 8:24, 4:20] = masks[1, 8:24, 44:60] = True
    conditions = (Condition((None, None)), Condition())
    seen = Inputs(image_to_tensor(picture)[None], keep, torch.stack(references), conditions)
    for order, expected in ((picture, 1.0), (picture[:, ::-1].copy(), 0.0)):
        together = replace(seen, shares=shares_of_regions(masks, (4, 8))[None])
        assert rate(image_to_tensor(order), together, mean_colours)[0] == pytest.approx(expected, abs=1e-6)
    covered = replace(seen, shares=shares_of_regions(torch.stack([masks[0], masks.any(0)]), (4, 8))[None])
    assert -1 <= rate(image_to_tensor(picture), covered, mean_colours)[0] <= 1


def test_the_best_is_the_most_alike_less_the_excess_of_its_seam():
    tried = [Attempt(5, 0.5, 0.3), Attempt(6, 0.6, 1.0 + 0.2 / SEAM_WEIGHT), Attempt(7, 0.45, 1.0)]
    assert [each.score for each in tried] == pytest.approx([0.5, 0.4, 0.45])
    choice = Choice.of(tried, Selection(3))
    assert choice.seed == 5 and [each["seed"] for each in choice.settings["tried"]] == [5, 6, 7]


def test_the_winner_is_painted_as_without_a_choice(edit, example):
    """The scores against the model's own CLIP on separate edits by the draft."""
    how = {**example, **SIZE, "context": "photo", "progress": False}
    got = edit(**how, seed=321, n_samples=2, best=2, preset="fast", feather=0)
    box = example["mask"].convert("L").resize((64, 64), Image.Resampling.BILINEAR).point(lambda v: 255 * (v > 127))
    inputs = edit.prepare(**example, **SIZE)
    tower = edit.model.cond_stage_model

    def features(pixels):
        return tower.transformer(pixels).pooler_output

    likenesses = []
    for seed in range(321, 325):
        painted = edit.sample(inputs, [seed], Sampling.choose("draft"), progress=False)[0]
        pixels = ((painted + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        region = reference_to_tensor(Image.fromarray(pixels).crop(box.getbbox()), tower.image_size)
        with torch.no_grad():
            likenesses.append(torch.cosine_similarity(features(region[None]), features(inputs.reference)).item())
    assert len(set(likenesses)) == 4
    for sample, first in zip(got, (0, 2), strict=True):
        settings = read_settings(sample)
        tried = settings["tried"]
        assert [each["seed"] for each in tried] == list(range(321 + first, 323 + first))
        assert [each["likeness"] for each in tried] == pytest.approx(likenesses[first : first + 2], abs=2e-4)
        assert settings["seed"] == max(tried, key=lambda each: each["score"])["seed"]
        assert (settings["best"], settings["best_preset"], settings["judge"]) == (2, "draft", "clip")
        again = edit(**how, seed=settings["seed"], preset="fast", feather=0)
        assert np.abs(np.asarray(again, int) - np.asarray(sample, int)).max() <= 1  # to rounding
        assert not {"best", "tried", "judge"} & read_settings(again).keys()


def test_a_photo_with_two_regions_has_one_seed(edit, example):
    boxes = [Region(box=(10, 10, 200, 200)), Region(box=(300, 100, 500, 300))]
    marked = MarkedPhoto.mark(example["image"], boxes, [example["reference"]])
    how = (Selection(2), Sampling(), Placement(**SIZE))
    both = edit.choose_seed(marked, 7, *how, progress=False)
    first = edit.choose_seed(
        MarkedPhoto(marked.photo, marked.masks[:1], marked.references[:1]), 7, *how, progress=False
    )
    assert [each.seed for each in both.tried] == [7, 8]
    assert all(a.likeness != b.likeness for a, b in zip(both.tried, first.tried, strict=True))


def test_a_case_of_a_benchmark_is_seen_as_by_prepare(edit, example):
    marked = MarkedPhoto.mark(example["image"], [Region(mask=example["mask"])], [example["reference"]], WHOLE)
    seen = edit.plan(marked.photo, marked.masks[0], marked.references[0], WHOLE).inputs
    for name in ("image", "mask", "reference"):
        assert torch.equal(getattr(seen, name), getattr(edit.prepare(**example), name)), name


# --------------------------------------------------------------------------------------------- DINOv2


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 4}
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


def test_dinov2_sees_pictures_as_its_own_preprocessing_makes_them(edit, example, dinov2):
    from transformers import BitImageProcessor, Dinov2Model

    pictures = [example[name].convert("RGB") for name in ("image", "reference")]
    processor = BitImageProcessor(
        size={"height": 64, "width": 64},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    network = Dinov2Model.from_pretrained(dinov2).eval()
    with torch.no_grad():
        expected = network(**processor(pictures, return_tensors="pt")).last_hidden_state[:, 0]
    assert torch.allclose(load_judge(str(dinov2), edit)(pictures), expected, atol=1e-4)
    got = edit(**example, **SIZE, best=2, judge=str(dinov2), preset="draft", progress=False)
    assert read_settings(got)["judge"] == dinov2.name


def test_judges_that_cannot_be_loaded_are_a_sentence(edit, dinov2, tmp_path):
    with pytest.raises(UserError, match=r"judge .* has no config.json: use clip, dinov2, hub, or the folder of"):
        load_judge(str(tmp_path), edit)
    from safetensors.torch import load_file, save_file

    weights = load_file(dinov2 / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"judge .* lacks 1 tensor \(layernorm.weight\): download"):
        load_judge(str(tmp_path), edit)


@pytest.mark.parametrize("options", [{"best": 0}, {"best": 65}, {"best_preset": "slow"}])
def test_selections_out_of_range(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Selection(**options)
    with pytest.raises(UserError, match="out of range"):
        Selection(2).seeds(2**63 - 1)


# --------------------------------------------------------------------------------------------- commands, tables, page


def test_the_command_names_the_seed_and_repeats_its_picture(script, tiny, tmp_path):
    flags = [f for pair in zip(("--image", "--mask", "--reference"), FILES, strict=True) for f in pair]
    small = [*MODEL, "--ckpt", tiny, "--outdir", tmp_path, "--skip_grid", "--H", 64, "--W", 64, "--steps", 2]
    code, _, err = script("inference", *flags, *small, "--best", 3, "--seed", 40)
    assert code == 0, err
    (picture,) = (tmp_path / "results").glob("*.png")
    seed = read_settings(picture)["seed"]
    assert picture.name == f"example_2_{seed}.png" and f"seed {seed} is the best of 3: {seed} " in err
    assert (tmp_path / f"source/example_2_{seed}_GT.png").exists()
    before = np.asarray(Image.open(picture))
    code, _, err = script("inference", "--from", picture, *MODEL, "--outdir", tmp_path / "again", "--skip_grid")
    assert code == 0, err
    (again,) = (tmp_path / "again/results").glob("*.png")
    assert np.array_equal(np.asarray(Image.open(again)), before) and "tried" not in read_settings(again)
    code, _, err = script("inference", *flags, *small, "--best", 3, "--fixed_code")
    assert code == 2 and "--fixed_code" in err


def test_a_table_chooses_each_rows_seed_and_keeps_its_picture(edit, tmp_path):
    image, mask, reference = FILES
    header = "image,mask,reference,out,seed,best,preset,height,width\n"
    table = tmp_path / "jobs.csv"
    table.write_text(header + f"{image},{mask},{reference},a.png,3,2,draft,64,64\n")
    (job,), bad = read_jobs(table, Defaults())
    assert not bad and job.selection == Selection(2)
    options, outcomes = BatchOptions(Loading(), {"precision": "full"}), []
    run_jobs(edit, [job], options, outcomes.append)
    assert [outcome.status for outcome in outcomes] == ["done"]
    settings = read_settings(tmp_path / "a.png")
    assert settings["seed"] in (3, 4) and [each["seed"] for each in settings["tried"]] == [3, 4]

    def kept(text):
        table.write_text(header + text)
        jobs, _ = read_jobs(table, Defaults())
        return split_finished(jobs, Account(tmp_path / "jobs.results.csv"), lambda job: settings_of_job(job, options))[
            1
        ]

    assert [each.reason for each in kept(f"{image},{mask},{reference},a.png,3,2,draft,64,64\n")] == ["was there"]
    (other,) = kept(f"{image},{mask},{reference},a.png,3,,draft,64,64\n")
    assert "best 2, not None" in other.reason


def test_the_page_tries_seeds_for_each_picture(edit, example):
    import asyncio

    numbers = {"scale": 5, "steps": 2, "sampler": "ddim", "strength": 1, "seed": 10, "n_samples": 2, "best": "2"}
    photo, mask = (example[name].resize((96, 64)) for name in ("image", "mask"))
    request = parse_request(photo, mask, example["reference"], **numbers)
    assert request.seeds == [10, 12]
    worker = EditWorker(edit, ModelInfo("full", "tiny"), [photo])
    try:

        async def results():
            return [update async for update in worker.stream(request)][-1]

        first, second = asyncio.run(results())
    finally:
        worker.close()
    assert [each["seed"] for each in first.settings["tried"]] == [10, 11]
    assert second.settings["seed"] in (12, 13) and json.dumps(second.settings)
