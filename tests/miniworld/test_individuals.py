"""Individuals of the small world: what is drawn, what is written, and the recogniser that tells them apart."""

import csv
import json
from argparse import Namespace
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import default_collate

from ldm.checkpoint.detail import read_detail
from ldm.cli.mini_table import compare_solvers
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.evaluation.benchmark import evaluate
from ldm.evaluation.features import Extractor
from ldm.evaluation.scorers import Case
from ldm.miniworld import table as table_module
from ldm.miniworld.families import FamilyCrops
from ldm.miniworld.gallery import has_individuals, read_lookalikes, read_views
from ldm.miniworld.identity import HELD_OUT, Identity
from ldm.miniworld.individuals import KINDS, Population, _maps, draw_outline
from ldm.miniworld.parts import recogniser_ceiling
from ldm.miniworld.recogniser import Recogniser, RecogniserTraining, margin_loss
from ldm.miniworld.scene import scene
from ldm.miniworld.scores import TOP1, LookalikeScorer, load_recogniser
from ldm.miniworld.table import Estimate, Row, read_rows, table, write_pasted
from ldm.util import UserError, instantiate_from_config
from tests.conftest import ROOT
from tests.miniworld.conftest import MINI, make_commands, run_script

POPULATION = Population("some", (0, 1), 12, 3)
LOOKS = ("shape", "pattern", "colour", "second")


def test_look_alikes_share_kind_and_colours_and_nothing_else():
    everyone = POPULATION.everyone()
    assert [each.kind for each in everyone[::3]] == list(KINDS)
    assert len({each.object for each in everyone}) == 12
    for family in (everyone[i : i + 3] for i in range(0, 12, 3)):
        assert len({(each.kind, each.colours) for each in family}) == 1
        assert POPULATION.lookalikes(family[1]) == family
        for one, other in pairwise(family):
            ours, theirs = (each.relief()[..., 0] > 0 for each in (one, other))
            assert (ours & theirs).sum() / (ours | theirs).sum() < 0.9
            y, x = np.mgrid[-0.5:0.5:40j, -0.5:0.5:40j].astype(np.float32)
            assert np.abs(one.albedo(x, y, 0.01) - other.albedo(x, y, 0.01)).mean() > 0.02
    assert len({each.colours for each in everyone}) == 4


def test_outlines_are_smooth_and_of_one_size():
    for seed in range(20):
        corners = draw_outline(np.random.default_rng(seed))
        assert np.linalg.norm(corners, axis=1).max() == pytest.approx(1.1)
        edges = np.diff(corners, axis=0)
        angles = np.unwrap(np.arctan2(edges[:, 1], edges[:, 0]))
        assert np.abs(np.diff(angles)).max() < np.radians(50)
        assert 0.5 < cv2.contourArea(np.float32(corners)) < np.pi * 1.1**2


def test_an_individual_is_the_same_in_every_scene():
    """Its outline and texture follow from its seed alone; a scene only adds pose and light."""
    one = POPULATION[0]
    y, x = np.mgrid[-0.6:0.6:30j, -0.6:0.6:30j].astype(np.float32)
    before = one.relief(), one.albedo(x, y, 0.01)
    _maps.cache_clear()
    (first, shown), (second, _) = (scene(seed, (160, 120), (1, 1), lambda _: one) for seed in (1, 2))
    assert [each.identity for each in shown] == [one] and (first != second).any()
    assert np.array_equal(before[0], one.relief()) and np.array_equal(before[1], one.albedo(x, y, 0.01))


# ------------------------------------------------------------------------------------------------------ files


def test_the_data_set_names_its_individuals(individuals, script):
    """The column `object` of the annotations is the individual's; no individual is in two splits; every third scene to
    train on shows shapes, none of them held out; and the files are prepared as OpenImages is."""
    root, seen = individuals / "world", {}
    for split, file in (("train", "oidv6-train"), ("validation", "validation"), ("pretraining", "pretraining")):
        with open(root / f"annotations/{file}-annotations-bbox.csv", newline="") as rows:
            rows = list(csv.DictReader(rows))
        objects = [json.loads(line) for line in (root / f"annotations/{split}-objects.jsonl").read_text().splitlines()]
        named = [each.get("object") or Identity(*map(each.get, LOOKS)).object for each in objects]
        assert [row["object"] for row in rows] == named
        kinds = [each.get("kind") or each["shape"] for each in objects]
        assert [row["LabelName"] for row in rows] == [f"/m/mini_{kind}" for kind in kinds]
        shown = [int(row["ImageID"][1:], 16) % 3 == 0 for row in rows if split == "train"]
        assert shown == ["shape" in each for each in objects if split == "train" or "shape" in each]
        assert not {(each.get("shape"), each.get("pattern")) for each in objects} & HELD_OUT
        seen[split] = set(named)
        assert len(rows) > 2 * len(seen[split])  # most are in several scenes
    assert not seen["train"] & seen["validation"] | seen["train"] & seen["pretraining"]
    assert sum(name.startswith("train-") for name in seen["train"]) > 5
    code, out, err = script("read_bbox", "--dataset_dir", root)
    assert code == 0 and "of the boxes can take their reference from another picture" in out, err


def test_the_benchmark_asks_for_one_of_fifty(individuals):
    bench = COCOImageDataset(individuals / "bench")
    cases, attributes = read_lookalikes(bench.root), json.loads((bench.root / "individuals.json").read_text())
    assert has_individuals(bench.root) and list(cases) == bench.ids
    for name, (own, gallery) in cases.items():
        assert own in gallery and len(set(gallery)) == 50
        asked, replaced = attributes[name]["reference"], attributes[name]["replaced"]
        assert asked["object"] == own != replaced["object"] and asked["seen"] >= 0.9
        assert len(read_views(bench.root, own)) == 4 and read_views(bench.root, own)[0].shape == (64, 64, 3)
    with pytest.raises(UserError, match="make the benchmark again"):
        read_views(bench.root, "bench-99999")


def test_another_benchmark_has_no_look_alikes(tmp_path):
    assert not has_individuals(tmp_path)
    with pytest.raises(UserError, match="--individuals"):
        read_lookalikes(tmp_path)
    (tmp_path / "individuals.json").write_text('{"1": {"reference": {"object": "a"}, "gallery": ["b"]}}')
    with pytest.raises(UserError, match="lacks the reference"):
        read_lookalikes(tmp_path)


# ------------------------------------------------------------------------------------------------------ recogniser


def test_the_margin_loss_is_cosfaces():
    """Equation 4 of Wang et al. 2018, term by term."""
    cosines = torch.tensor([[0.9, 0.1, -0.3], [0.2, 0.4, 0.5], [0.0, 0.7, 0.6]], dtype=torch.float64)
    s, m, terms = 10.0, 0.3, []
    for i in range(3):
        own = torch.exp(s * (cosines[i, i] - m))
        others = sum(torch.exp(s * cosines[i, j]) for j in range(3) if j != i)
        terms.append(-torch.log(own / (own + others)))
    torch.testing.assert_close(margin_loss(cosines, s, m), sum(terms) / 3)


def test_training_compares_a_crop_with_the_other_views():
    """A recogniser that knows the individuals is always right, and its loss is known; one that always answers the same
    is right for the first."""
    model = instantiate_from_config(OmegaConf.load(MINI / "recogniser.yaml").model, RecogniserTraining)
    images = torch.zeros(2, 3, 4, 3, 1, 1)
    images[..., 0, 0, 0] = torch.arange(6).view(2, 3, 1)
    model.recogniser.forward = lambda x: F.one_hot(x[:, 0, 0, 0].long(), 6).float()
    knows = model.losses({"image": images})
    assert knows["top1"] == 1
    torch.testing.assert_close(knows["loss"], torch.log1p(5 * torch.exp(torch.tensor(-16 * 0.8))))
    model.recogniser.forward = lambda x: F.one_hot(torch.zeros(len(x), dtype=torch.long), 6).float()
    assert model.losses({"image": images})["top1"] == pytest.approx(1 / 6)


def test_crops_are_of_one_family(individuals):
    data = FamilyCrops("validation", str(individuals / "world"), augment=True, views=2)
    again = FamilyCrops("validation", str(individuals / "world"), augment=True, views=2)
    assert data[0]["image"].shape == (10, 2, 3, 64, 64)
    assert torch.equal(data[1, 0]["image"], again[1, 0]["image"])
    assert not torch.equal(data[1, 0]["image"], data[2, 0]["image"])
    assert data.path(0).exists() and len(data) == 1
    assert all(len({each.object for each in one}) == 1 for one in data.families[0])
    assert len({each.family for one in data.families[0] for each in one}) == 1
    loss = RecogniserTraining().losses(default_collate([data[0]]))["loss"]
    assert loss.isfinite()
    with pytest.raises(UserError, match="no whole family"):
        FamilyCrops("test", str(individuals / "world"))


def colour_recogniser():
    """A recogniser by mean colour alone."""

    def prepare(picture):
        return np.asarray(picture.resize((1, 1), Image.Resampling.BOX), dtype=np.float32).reshape(3) / 255

    return Extractor("colour", lambda x: F.normalize(x, dim=1), "colour", "", "", torch.device("cpu"), None, prepare)


def test_the_score_is_the_nearest_of_the_gallery(individuals, tmp_path):
    bench = COCOImageDataset(individuals / "bench")
    write_pasted(bench, tmp_path / "pasted")
    scorer, cases = LookalikeScorer(colour_recogniser(), bench.root), read_lookalikes(bench.root)
    summary = evaluate(tmp_path / "pasted", bench, [TOP1], [scorer])
    for i, case in enumerate(summary.per_case):
        own, names = cases[case.id]
        region = Case(i, case.id, *bench.pictures(i), Image.open(tmp_path / f"pasted/{case.id}.png")).region
        query = scorer.extractor([scorer.extractor.prepare(region)])[0]
        nearest = []
        for name in names:
            views = [scorer.extractor.prepare(Image.fromarray(view)) for view in read_views(bench.root, name)]
            nearest.append(F.cosine_similarity(query, scorer.extractor(views).mean(0), dim=0).item())
        assert case.values["top1"] == (names[int(np.argmax(nearest))] == own)
    ceiling = recogniser_ceiling(scorer, bench)
    assert ceiling.shape == (len(bench),) and set(ceiling) <= {0, 1}
    case = Case(0, bench.ids[0], *bench.pictures(0), bench.pictures(0)[0])
    assert scorer.prepare(replace(case, id="another")) is None
    assert scorer.prepare(replace(case, mask=Image.new("L", case.mask.size))) is None


def test_a_sweep_of_solvers_needs_colours(individuals):
    scorer = LookalikeScorer(colour_recogniser(), individuals / "bench")
    setup = SimpleNamespace(judge=SimpleNamespace(bench=None, identity=scorer))
    with pytest.raises(UserError, match="colour error"):
        compare_solvers(Namespace(bench=individuals / "bench"), setup)


def test_the_recognisers_file_is_small_and_loads(tmp_path):
    model = RecogniserTraining().eval()
    save_file({name: tensor.half() for name, tensor in model.state_dict().items()}, tmp_path / "recogniser.safetensors")
    assert (tmp_path / "recogniser.safetensors").stat().st_size < 2e6
    recogniser = load_recogniser(tmp_path / "recogniser.safetensors")
    picture = Image.effect_noise((50, 70), 60).convert("RGB")
    seen = recogniser([recogniser.prepare(picture)])
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(1))
    same = model.recogniser(torch.from_numpy(recogniser.prepare(picture))[None])
    torch.testing.assert_close(seen, same, rtol=0, atol=0.02)
    save_file(Recogniser((8, 8, 8, 8)).state_dict(), tmp_path / "recogniser.safetensors")
    with pytest.raises(UserError, match="another network"):
        load_recogniser(tmp_path / "recogniser.safetensors")


def test_the_recogniser_that_ships_knows_individuals(individuals):
    """In scenes of half the size that it was trained on; by chance one in 50 would be right."""
    bench = COCOImageDataset(individuals / "bench")
    scorer = LookalikeScorer(load_recogniser(ROOT / "pretrained_models/mini_recogniser.safetensors"), bench.root)
    assert recogniser_ceiling(scorer, bench).mean() > 0.5


def test_from_training_to_the_table(individuals, script, tmp_path, monkeypatch):
    """The commands of `make mini-individuals`, with two steps of training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    _, train, convert, tabulate = make_commands("mini-individuals")
    short = ["--max_steps", "2", "--limit_val_batches", "1", "--accelerator", "cpu", "--enable_progress_bar", "False"]
    short += ["--val_check_interval", "1", "--no-test", "data.params.batch_size=1", "data.params.num_workers=0"]
    run_script(script, [*train, *short, f"data.params.dataset_dir={individuals / 'world'}"])
    run_script(script, convert)
    monkeypatch.setattr(table_module, "FID_RESAMPLES", 3)
    few = ["--bench", str(individuals / "bench"), "--cases", "2", "--steps", "1", "--scales", "5", "--device", "cpu"]
    out = run_script(script, [*tabulate, *few])
    assert "top-1 of 50" in out.splitlines()[1] and "| individuals, scale 5 |" in out
    rows = read_rows(tmp_path / "logs/mini/table/individuals.json")
    assert set(rows["photo, unedited"].scores) == {"top1", "clip_score", "fid_clip", "copy_paste", "seam"}


def test_a_table_of_both_benchmarks_has_the_columns_of_both(tmp_path):
    common = {key: Estimate(1.0, 0.5, 1.5) for key in ("clip_score", "fid_clip", "copy_paste", "seam")}
    one = Row(common | {"top1": Estimate(0.25, 0.2, 0.3)}, tmp_path)
    lines = table({"individuals": one}).splitlines()
    assert lines[0] == "| | top-1 of 50 | CLIP score | FID | copy-paste | seam |" and "| 0.25 ± 0.05 |" in lines[2]
    other = Row(common | {key: Estimate(1.0, 0.5, 1.5) for key in ("shape", "pattern", "colour_error")}, tmp_path)
    lines = table({"individuals": one, "shapes": other}).splitlines()
    assert lines[0].count("|") == lines[2].count("|") == lines[3].count("|") == 10


def test_from_the_miniature_to_a_plot_of_likeness(individuals, script, tmp_path, monkeypatch):
    """The commands of `make mini-likeness` in their order, with two steps of each training."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "pretrained_models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(table_module, "FID_RESAMPLES", 3)
    data = [f"data.params.dataset_dir={individuals / 'world'}", "data.params.batch_size=2"]
    short = ["--max_steps", "2", "--limit_val_batches", "1", "--accelerator", "cpu", "--enable_progress_bar", "False"]
    short += ["--precision", "32", "--val_check_interval", "2", "--no-test", "data.params.num_workers=0", *data]
    short += ["lightning.images.steps=2", "lightning.images.count=2"]
    more = {
        "scripts/prepare_latents.py": ["--device", "cpu", *data],
        "main.py": short,
        "scripts/convert_checkpoint.py": [],
        "scripts/mini_table.py": [
            "--bench",
            str(individuals / "bench"),
            "--cases",
            "2",
            "--steps",
            "1",
            "--device",
            "cpu",
        ],
    }
    assert script("read_bbox", "--dataset_dir", individuals / "world")[0] == 0
    for words in make_commands("mini-likeness")[2:]:
        out = run_script(script, [*words, *more[words[0]]])
    models = ("plain", "detail")
    assert [line.split(" | ")[0] for line in out.splitlines() if ", scale " in line] == [
        f"| {model}, scale {scale}" for model in models for scale in (1.5, 2, 3)
    ]
    table = tmp_path / "logs/mini/likeness/table"
    assert (table / "likeness.svg").read_text().count("<circle") == 6
    assert read_detail(tmp_path / "logs/mini/likeness/detail/checkpoints/detail.safetensors")[0]["rank"] == 32
