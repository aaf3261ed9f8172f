"""The method in miniature: the small world's CLIP, oracle and prior, what judges edits, and the chain of it all."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file as read_safetensors
from safetensors.torch import save_file
from torch.utils.data import default_collate

from ldm.checkpoint import load_model, locate, read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.checkpoint.locate import MINI_CONFIG
from ldm.checkpoint.names import FIRST_CONV
from ldm.checkpoint.surgery import widen
from ldm.conventions import reference_to_tensor
from ldm.data.bench.cocoee import COCOImageDataset, result_path
from ldm.evaluation.benchmark import identity_scores
from ldm.evaluation.clip_score import bounding_box, copy_paste
from ldm.evaluation.features import load_clip, load_oracle
from ldm.evaluation.fid import Statistics
from ldm.miniworld import presets as mini_presets
from ldm.miniworld import table as mini_table
from ldm.miniworld.clip import Contrastive
from ldm.miniworld.crops import ReferenceCrops, RegionCrops, bench_identities, identity_numbers, lab, read_objects
from ldm.miniworld.oracle import colour_error
from ldm.miniworld.scene import (
    CAPTION_LENGTH,
    COLOURS,
    END,
    PATTERNS,
    SHAPES,
    WORDS,
    Identity,
    caption,
    caption_tokens,
)
from ldm.models.diffusion.conditioning import unconditional_token
from ldm.models.diffusion.draws import Draws
from ldm.models.diffusion.presets import Preset
from ldm.modules.encoders.clip import ResNetTower, build_clip
from ldm.pipeline import PaintByExample
from ldm.training.start import initial_model
from ldm.util import UserError, instantiate_from_config, load_config
from tests.conftest import ROOT
from tests.documents import commands_of

MINI = ROOT / "configs/mini"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """dataset/miniworld, prepared, and test_bench_mini, as scripts/make_miniworld.py draws them, small."""
    from ldm.miniworld.write import write_bench, write_world

    root = tmp_path_factory.mktemp("mini")
    write_world(root / "world", {"train": 24, "validation": 6, "test": 4, "pretraining": 12}, (192, 144), 3)
    write_bench(root / "bench", 6, 30, 64, (192, 144), 3)
    return root


# ------------------------------------------------------------------------------------------------ data


def test_every_caption_fits_and_reads_back():
    colours = list(COLOURS.values())
    longest = 0
    for shape in SHAPES:
        for pattern in PATTERNS:
            for first, second in zip(colours, colours[1:] + colours[:1], strict=True):
                text = caption(Identity(shape, pattern, first, second))
                tokens = caption_tokens(text)
                assert tokens.shape == (CAPTION_LENGTH,) and tokens.argmax() == len(text.split())
                assert " ".join(WORDS[token - 1] for token in tokens if 0 < token < END) == text
                longest = max(longest, len(text.split()) + 1)
    assert longest <= CAPTION_LENGTH
    text = json.loads((MINI / "clip.json").read_text())["text_cfg"]
    assert text["vocab_size"] > END and text["context_length"] == CAPTION_LENGTH


def test_colours_in_lab():
    """Red, white and a grey as CIE has them for sRGB under D65."""
    known = [(53.24, 80.09, 67.20), (100.0, 0.0, 0.0), (53.59, 0.0, 0.0)]
    np.testing.assert_allclose(100 * lab([(1, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5)]), known, atol=0.3)


def test_crops_are_functions_of_their_key(world):
    objects = read_objects(world / "world", "train")
    for kind in (ReferenceCrops, RegionCrops):
        plain, augmented = (kind("train", str(world / "world"), augment=augment) for augment in (False, True))
        assert len(plain) == len(objects)
        for i in (0, 5):
            assert torch.equal(augmented[2, i]["image"], augmented[2, i]["image"])
            assert not torch.equal(augmented[2, i]["image"], augmented[3, i]["image"])
            assert torch.equal(plain[0, i]["image"], plain[i]["image"])
            thing = objects[i]
            assert plain[i]["shape"] == SHAPES.index(thing["shape"])
            assert plain[i]["pattern"] == PATTERNS.index(thing["pattern"])
            told = [" ".join(WORDS[t - 1] for t in tokens if 0 < t < END) for tokens in plain[i]["caption"]]
            adjective = thing["caption"].split()[1 if thing["pattern"] == "solid" else -2]
            assert told == [thing["caption"], f"a {thing['shape']}", f"a {adjective} thing"]


def test_crops_show_the_object(world):
    """A reference is the box and 10 px around it; a region is the box alone."""
    thing = read_objects(world / "world", "validation")[1]
    picture = np.asarray(Image.open(world / "world" / thing["image"]).convert("RGB"))
    x0, y0, x1, y1 = thing["box"]
    around = picture[max(0, y0 - 10) : y1 + 10, max(0, x0 - 10) : x1 + 10]
    reference = ReferenceCrops("validation", str(world / "world"))[1]["image"]
    wanted = reference_to_tensor(Image.fromarray(cv2.resize(around, (224, 224))))
    assert (reference - wanted).abs().mean() < 0.02
    region = RegionCrops("validation", str(world / "world"), least=56)[1]["image"]
    wanted = torch.from_numpy(cv2.resize(picture[y0:y1, x0:x1], (40, 40), interpolation=cv2.INTER_AREA))
    assert (region - wanted.permute(2, 0, 1) / 255).abs().mean() < 0.08


def test_a_world_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="make_miniworld"):
        ReferenceCrops("train", str(tmp_path))
    good = {"shape": "star", "pattern": "dots", "colour": [0, 0, 1], "second": [1, 1, 1]}
    for wrong in ({"shape": "cube"}, {"colour": [1, 2]}, {"second": [1, 1, 1, 1]}, {"colour": None}):
        (tmp_path / "attributes.json").write_text(json.dumps({"0": {"reference": good | wrong}}))
        with pytest.raises(UserError, match="attributes"):
            bench_identities(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train-objects.jsonl").write_text(json.dumps({"image": "a.jpg", **good}) + "\n")
    with pytest.raises(UserError, match="train-objects"):
        ReferenceCrops("train", str(tmp_path))


def test_which_model_where_none_is_named(tmp_path, monkeypatch, capsys):
    """The released one where it is, in checkpoints/ or the hub's cache; else the miniature, which is said."""
    for name in ("DEFAULT_CKPT", "MINI_CKPT"):
        monkeypatch.setattr(locate, name, tmp_path / name)
    cached = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: cached[0] if cached else None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: "fetched")
    assert locate.choose_model() == (locate.DEFAULT_CONFIG, Path("fetched"))
    (tmp_path / "MINI_CKPT").touch()
    capsys.readouterr()
    assert locate.choose_model() == (MINI_CONFIG, tmp_path / "MINI_CKPT")
    assert "using the miniature model" in capsys.readouterr().err
    for given, wanted in (
        (("c.yaml", None), ("c.yaml", Path("fetched"))),
        ((None, "m.ckpt"), (locate.DEFAULT_CONFIG, Path("m.ckpt"))),
        (("c.yaml", "m.ckpt"), ("c.yaml", Path("m.ckpt"))),
        ((None, None, True), (locate.DEFAULT_CONFIG, Path("fetched"))),
    ):
        assert locate.choose_model(*given) == wanted
    cached.append("in the cache")
    assert locate.choose_model() == (locate.DEFAULT_CONFIG, Path("fetched"))
    (tmp_path / "DEFAULT_CKPT").touch()
    assert locate.choose_model() == (locate.DEFAULT_CONFIG, tmp_path / "DEFAULT_CKPT")


# ------------------------------------------------------------------------------------------------ parts


CLIP_CONFIG = str(MINI / "clip.json")


def clip_and_batch(world, count=8):
    torch.manual_seed(1)
    data = ReferenceCrops("train", str(world / "world"), image_size=128)
    return Contrastive(CLIP_CONFIG).eval(), default_collate([data[i] for i in range(count)])


@torch.no_grad()
def test_the_contrastive_loss_is_clips(world):
    """open_clip's own, where all captions differ, its mean over the kinds of captions; where two captions are the
    same, either image may go with either."""
    model, batch = clip_and_batch(world)
    everything, shapes, patterns = batch["caption"].unbind(1)
    assert len({tuple(caption) for caption in everything.tolist()}) == 8
    image = model.clip.encode_image(batch["image"], normalize=True)
    theirs = open_clip.ClipLoss()(
        image, model.clip.encode_text(everything, normalize=True), model.clip.logit_scale.exp()
    )
    alone = model.losses(batch | {"caption": everything[:, None]})["loss"]
    torch.testing.assert_close(alone, theirs)
    patterns[1:3] = patterns[0]
    logits = model.clip.logit_scale.exp() * image @ model.clip.encode_text(patterns, normalize=True).T
    target = (patterns[:, None] == patterns).all(-1).float()
    target /= target.sum(1, keepdim=True)
    assert target[0, :3].tolist() == pytest.approx([1 / int(target[0].count_nonzero())] * 3)
    ways = [-(target * F.log_softmax(each, dim=1)).sum(dim=1).mean() for each in (logits, logits.T)]
    other = model.losses(batch | {"caption": patterns[:, None]})["loss"]
    torch.testing.assert_close(other, sum(ways) / 2)
    third = model.losses(batch | {"caption": shapes[:, None]})["loss"]
    torch.testing.assert_close(model.losses(batch)["loss"], (alone + other + third) / 3)


@torch.no_grad()
def test_what_fills_a_caption_up_is_not_read(world):
    model, _ = clip_and_batch(world)
    tokens = torch.from_numpy(caption_tokens("a solid red star"))[None]
    filled = tokens.clone()
    filled[:, 5:] = 7  # after the end
    assert tokens[0, 4] == END
    torch.testing.assert_close(model.clip.encode_text(tokens), model.clip.encode_text(filled))


def test_zero_shot_takes_the_nearest_captions(world):
    """A CLIP that sees and reads the attributes themselves is always right; one that sees others, never."""
    shapes = torch.tensor([WORDS.index(shape) + 1 for shape in SHAPES])
    adjectives = ("solid", "striped", "dotted", "checked", "wavy", "halved")
    patterns = torch.tensor([WORDS.index(word) + 1 for word in adjectives])
    bench = COCOImageDataset(str(world / "bench"))
    known = list(bench_identities(bench.root).values())
    wanted = [torch.tensor([each[key] for each in known]) for key in ("shape", "pattern")]

    def reads(tokens, normalize):
        return torch.cat([(tokens[..., None] == numbers).any(1) for numbers in (shapes, patterns)], dim=1).float()

    def clip(shift):
        seen = [F.one_hot((each + shift) % count, count) for each, count in zip(wanted, (12, 6), strict=True)]
        visual = SimpleNamespace(image_size=16)
        return SimpleNamespace(encode_text=reads, encode_image=lambda _: torch.cat(seen, 1).float(), visual=visual)

    assert mini_table.zero_shot_accuracy(clip(0), bench) == (1, 1)
    assert mini_table.zero_shot_accuracy(clip(1), bench) == (0, 0)


def test_one_clip_for_captions_references_and_scores(world, tmp_path):
    """The file that training writes, as the table, the scores and the reference encoder read it; it has to fit."""
    model, batch = clip_and_batch(world, 3)
    for norm in (m for m in model.clip.visual.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 2)
    model.export(tmp_path)
    file = tmp_path / "clip.safetensors"
    with torch.no_grad():
        wanted = model.clip.encode_image(batch["image"])
    torch.testing.assert_close(load_clip(file, "cpu", CLIP_CONFIG)([image.numpy() for image in batch["image"]]), wanted)
    torch.testing.assert_close(mini_table.read_clip(CLIP_CONFIG, file).encode_image(batch["image"]), wanted)

    config = load_config(OmegaConf.merge(OmegaConf.load(MINI_CONFIG), OmegaConf.load(MINI / "prior.yaml")))
    trained, read = json.loads((MINI / "clip.json").read_text()), config.model.params.cond_stage_config.params.resnet
    del trained["vision_cfg"]["patch_size"]  # null: a residual network has none
    assert {name: trained[name] for name in read} == OmegaConf.to_container(read)
    first_stage = instantiate_from_config(OmegaConf.load(MINI / "first_stage.yaml").model, torch.nn.Module)
    save_file(first_stage.state_dict(), tmp_path / "first_stage.safetensors")
    config.model.params.cond_stage_config.params.version = str(file)
    tower = initial_model(config, str(tmp_path / "first_stage.safetensors")).cond_stage_model.transformer
    out = tower(batch["image"])
    torch.testing.assert_close(out.pooler_output, wanted)
    assert out.last_hidden_state.shape == (3, tower.positions, 128)
    assert tower(torch.rand(1, 3, 224, 224)).pooler_output.shape == (1, 128)

    tensors = read_safetensors(file)
    del tensors["visual.bn1.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError, match="lacks 1 tensor"):
        load_clip(file, "cpu", CLIP_CONFIG)
    with pytest.raises(UserError, match="another config"):
        mini_table.read_clip(CLIP_CONFIG, file)
    with pytest.raises(UserError, match="it lacks 1 tensor"):
        initial_model(config, str(tmp_path / "first_stage.safetensors"))
    (tmp_path / "clip.json").write_text("{")
    for call in (
        lambda: load_clip(file, "cpu", str(tmp_path / "clip.json")),
        lambda: build_clip(tmp_path / "clip.json"),
    ):
        with pytest.raises(UserError, match="format"):
            call()


def test_places_weighted_by_attention_are_the_picture(world):
    """What pools is an average of the places' features: with equal weights it is theirs."""
    _, batch = clip_and_batch(world, 2)
    resnet = OmegaConf.to_container(OmegaConf.load(MINI_CONFIG).model.params.cond_stage_config.params.resnet)
    tower = ResNetTower(**resnet).eval()
    pool = tower.visual.attnpool
    with torch.no_grad():
        pool.q_proj.weight.zero_()
        pool.q_proj.bias.zero_()
        pool.positional_embedding.zero_()
        out = tower(batch["image"])
    places = out.last_hidden_state[:, 1:]  # beside these, attention sees their mean
    torch.testing.assert_close(out.pooler_output, places.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert torch.equal(out.last_hidden_state[:, 0], out.pooler_output)


def test_colour_error():
    red, blue, grey = torch.eye(3)
    wanted = torch.stack([red, blue])[None]
    assert colour_error(wanted.flip(1), wanted) == 0
    torch.testing.assert_close(colour_error(torch.stack([red, grey])[None], wanted), torch.tensor([50 * 2**0.5]))


def test_identity_scores():
    thing = {"shape": "star", "pattern": "dots", "colour": (1, 0, 0), "second": (1, 1, 1)}
    wanted = identity_numbers(thing)
    right = torch.cat([
        F.one_hot(torch.tensor(SHAPES.index("star")), 12).float(),
        F.one_hot(torch.tensor(PATTERNS.index("dots")), 6).float(),
        torch.from_numpy(wanted["colours"]).flatten(),
    ])  # fmt: skip
    wrong = right.roll(1)
    scores = identity_scores(torch.stack([right, wrong]), [wanted, wanted])
    assert scores["shape"].tolist() == [1, 0] and scores["pattern"].tolist() == [1, 0]
    assert scores["colour_error"][0] == 0 and scores["colour_error"][1] > 10


def test_copy_paste():
    rng = np.random.default_rng(0)
    region, other = (Image.fromarray(rng.integers(0, 256, (30, 24, 3), dtype=np.uint8)) for _ in range(2))
    assert copy_paste(region, region) == pytest.approx(1)
    assert copy_paste(region, region.resize((240, 300), Image.Resampling.NEAREST)) > 0.9
    assert abs(copy_paste(region, other)) < 0.1
    negative = Image.fromarray(255 - np.asarray(region))
    assert copy_paste(region, negative) == pytest.approx(-1)
    darker = region.point(lambda value: value // 2 + 20)  # the same pixels in another light
    assert copy_paste(region, darker) > 0.99


def test_the_interval_of_a_fid():
    """About as wide as FIDs of sets drawn anew are spread."""
    rng = np.random.default_rng(0)
    real = Statistics()
    real.add(rng.normal(size=(4000, 8)))
    values = []
    for _ in range(60):
        drawn = rng.normal(0.3, 1.0, (300, 8))
        some = Statistics()
        some.add(drawn)
        values.append(mini_table.frechet_distance(some.mean, some.covariance, real.mean, real.covariance))
    low, high = mini_table.interval_around(values[-1], mini_table.resampled_fids(drawn, real))
    assert low < values[-1] < high
    assert 0.6 < (high - low) / (np.quantile(values, 0.975) - np.quantile(values, 0.025)) < 1.6


# ------------------------------------------------------------------------------------------------ prior


def test_the_prior_learns_from_pictures_alone():
    """Its loss is that of the 4 latent channels with the learned vector; it has no gradient from references."""
    config = load_config(OmegaConf.merge(OmegaConf.load(MINI_CONFIG), OmegaConf.load(MINI / "prior.yaml")))
    model = instantiate_from_config(config["model"], torch.nn.Module).train()
    torch.nn.init.normal_(model.model.diffusion_model.out[2].weight, std=0.01)  # it starts at zero
    model.setup("fit")
    batch = {"GT": torch.rand(2, 3, 64, 64) * 2 - 1, "ref_imgs": torch.full((2, 3, 224, 224), torch.nan)}
    draws = Draws.from_seeds([(0,), (1,)], (4, 16, 16), 1000, "cpu")
    loss, _ = model.batch_loss(batch, draws, 0.2)
    posterior = model.first_stage_model.encode(batch["GT"])
    z = model.scale_factor * (posterior.mean + posterior.std * draws.noise_gt)
    abar = model.alphas_cumprod[draws.t].view(-1, 1, 1, 1)
    x = abar.sqrt() * z + (1 - abar).sqrt() * draws.noise
    eps = model.model(x, draws.t, unconditional_token(model, 2))
    torch.testing.assert_close(loss, (eps - draws.noise).square().mean())
    loss.backward()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[0] for name in names} == {"model", "learnable_vector"}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# ------------------------------------------------------------------------------------------------ the chain


def test_the_whole_chain(world, script, tmp_path, monkeypatch):
    """What `make mini` does, in its order, two steps of each training: world, autoencoder, CLIP, oracle, prior, widened
    UNet, Paint by Example, edits, table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert script("read_bbox", "--dataset_dir", world / "world")[0] == 0
    recipe = (ROOT / "Makefile").read_text().split("\nmini:")[1].split("\n\n")[0]
    calls = re.findall(r"\(call train,(\w+),([^)]+)\)", recipe)
    assert [name for name, _ in calls] == ["first_stage", "clip", "oracle", "prior", "paint_by_example"]
    short = ["--max_steps", 2, "--limit_val_batches", 1, "--accelerator", "cpu", "--enable_progress_bar", False]
    short += ["--precision", 32, "--val_check_interval", 2, f"data.params.dataset_dir={world / 'world'}"]
    short += ["data.params.batch_size=4", "data.params.num_workers=0", "lightning.images.steps=2", "--no-test"]
    short += ["lightning.images.count=2"]
    commands = [line.strip() for line in recipe.replace("\\\n", " ").splitlines() if "scripts/" in line]
    commands = [words for words in (c.split() for c in commands) if words[0] == "$(BIN)/python"]
    for name, configs in calls:
        if name == "paint_by_example":
            run_script(script, commands.pop(0), "modify_checkpoints")
        bases = [ROOT / each for each in configs.split()]
        code, out, err = script("main", "--project", f"logs/mini/{name}", "--base", *bases, *short)
        assert code == 0 and "trained to step 2" in out, err
    for name, columns in (("first_stage", 2), ("prior", 4), ("paint_by_example", 5)):
        assert Image.open(tmp_path / f"logs/mini/{name}/images/step00000001.png").width == columns * 258 - 2

    clip = read_safetensors(tmp_path / "logs/mini/clip/clip.safetensors")
    prior, last = (read_checkpoint(f"logs/mini/{name}/checkpoints/last.ckpt") for name in ("prior", "paint_by_example"))
    first_stage = read_checkpoint("logs/mini/first_stage/checkpoints/last.ckpt")
    wide = read_checkpoint("logs/mini/prior-9channel.safetensors")
    assert all(
        torch.equal(prior[name], tensor) and torch.equal(last[name], tensor) for name, tensor in first_stage.items()
    )
    for name in ("visual.conv1.weight", "visual.bn1.running_var", "visual.attnpool.c_proj.bias"):
        assert torch.equal(last[f"cond_stage_model.transformer.{name}"], clip[name])
    assert wide[FIRST_CONV].shape[1] == 9 and not wide[FIRST_CONV][:, 4:].any()
    assert last[FIRST_CONV][:, 4:].any()  # which training fills

    run_script(script, commands.pop(0), "convert_checkpoint")
    run_script(script, commands.pop(0), "convert_checkpoint")
    shutil.copytree(world / "bench", tmp_path / "bench")
    words = [*commands.pop(0), "--bench", "bench", "--steps", "2", "--batch_size", "6", "--device", "cpu"]
    out = run_script(script, words, "mini_table")
    assert not commands
    rows = json.loads((tmp_path / "logs/mini/table/mini.json").read_text())
    assert list(rows)[:2] == ["photo, unedited", "reference, pasted"] and len(rows) == 4
    assert rows["reference, pasted"]["copy_paste"]["value"] == pytest.approx(1, abs=1e-3)
    assert all(f"| {name} |" in out for name in rows)
    code, shown, err = script("mini_table", "--show", "logs/mini/table/mini.json")
    assert code == 0 and shown.strip() in out, err
    words = ["logs/mini/table/mini.json"] * 2 + ["--bench", "bench", "--name", "both", "--outdir", "logs/mini/both"]
    code, again, err = script("mini_table", "--show", *words)
    assert code == 0 and again == shown, err
    assert Image.open("logs/mini/both/both.png").width == 7 * 130 - 2  # four rows' edits beside what they are of
    both = mini_table.read_rows(tmp_path / "logs/mini/both/both.json")
    assert both["mini, scale 5"]["results"].samefile("logs/mini/table/mini-scale-5/results")
    load_model(MINI_CONFIG, "logs/mini/mini.safetensors")


def run_script(script, words, name):
    words = [word for word in words if word != "\\"]
    assert words[:2] == ["$(BIN)/python", f"scripts/{name}.py"]
    code, out, err = script(name, *words[2:])
    assert code == 0, err
    return out


# ------------------------------------------------------------------------------------------------ rows


def test_every_row_of_table_3_starts_from_the_prior(tmp_path):
    """Those without the bottleneck have no mapper to fill; the baseline's UNet starts from random weights."""
    prior = OmegaConf.merge(OmegaConf.load(MINI_CONFIG), OmegaConf.load(MINI / "prior.yaml"))
    model = instantiate_from_config(prior["model"], torch.nn.Module)
    write_checkpoint(widen(model.state_dict()), tmp_path / "prior.safetensors")
    rows = re.findall(r"\(call row,(\w+),", (ROOT / "Makefile").read_text())
    assert set(rows) == {path.stem for path in ROOT.glob("configs/ablation/*.yaml")}
    for row in set(rows):
        parts = (MINI_CONFIG, ROOT / f"configs/ablation/{row}.yaml", MINI / "budget.yaml")
        config = OmegaConf.merge(*map(OmegaConf.load, parts))
        started = initial_model(config, str(tmp_path / "prior.safetensors")).state_dict()
        name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
        assert torch.equal(started[name], model.state_dict()[name]) == (row != "baseline")
        assert torch.equal(started["first_stage_model.quant_conv.weight"], model.first_stage_model.quant_conv.weight)


def test_rows_to_compare_with(world, tmp_path):
    bench = COCOImageDataset(str(world / "bench"))
    mini_table.unedited(bench, tmp_path / "unedited")
    mini_table.pasted(bench, tmp_path / "pasted")
    for i, name in enumerate(bench.ids):
        photo, mask, reference = (np.asarray(picture) for picture in bench.pictures(i))
        assert np.array_equal(np.asarray(Image.open(result_path(tmp_path / "unedited", name))), photo)
        pasted = np.asarray(Image.open(result_path(tmp_path / "pasted", name)))
        assert np.array_equal(pasted[mask < 128], photo[mask < 128])
        assert abs(pasted[mask >= 128].mean() - reference.mean()) < 6


# ------------------------------------------------------------------------------------- the model that ships

SHIPPED = ROOT / "pretrained_models"


def test_the_model_that_ships(script, tmp_path):
    """make demo: the objects of its twelve references, of pairs never trained on, appear where they are to; without the
    references they do not."""
    assert sum(path.stat().st_size for path in SHIPPED.glob("mini*")) < 40e6
    demo = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("else\n")[1].split("endif")[0]
    words = demo.replace("\\\n", " ").splitlines()[0].split()
    bench, oracle = (
        COCOImageDataset(str(ROOT / "examples/mini")),
        load_oracle(SHIPPED / "mini_oracle.safetensors", "cpu"),
    )
    identities, scores = mini_table.require_identities(bench), {}
    words = words[:2] + [str(ROOT / word) if (ROOT / word).exists() else word for word in words[2:]]
    for scale in (0, 5):
        outdir = tmp_path / str(scale)
        words += ["--outdir", str(outdir), "--ddim_steps", "25", "--scale", str(scale), "--device", "cpu"]
        run_script(script, words, "inference_test_bench")
        assert Image.open(outdir / "grid.png").width == 4 * 130 - 2
        regions = []
        for i, name in enumerate(bench.ids):
            r0, r1, c0, c1 = bounding_box(np.asarray(bench.pictures(i)[1]))
            regions.append(oracle.prepare(Image.open(result_path(outdir / "results", name)).crop((c0, r0, c1, r1))))
        found = identity_scores(oracle(regions), [identities[name] for name in bench.ids])
        scores[scale] = {name: value.mean().item() for name, value in found.items()}
    assert scores[5]["colour_error"] < 0.6 * scores[0]["colour_error"], scores
    assert scores[5]["pattern"] > max(0.4, scores[0]["pattern"]), scores
    assert scores[5]["shape"] > max(0.3, scores[0]["shape"]), scores


def test_its_reference_encoder_in_half_precision():
    """A residual network with BatchNorm, whose statistics are no parameters."""
    reference = reference_to_tensor(Image.open(ROOT / "examples/mini/Ref_3500/000000000001_ref.png"))[None]
    full, half = (
        PaintByExample.load(MINI_CONFIG, SHIPPED / "mini.safetensors", "cpu", each).networks
        for each in ("full", "bf16")
    )
    with torch.no_grad():
        exact, near = (each.get_learned_conditioning(reference).float() for each in (full, half))
    assert (near - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("command", commands_of("scripts/mini_table.py"), ids=lambda command: command[:60])
def test_the_commands_of_the_pages(command, script, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "bench", tmp_path / "test_bench_mini")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    few = {"plms 50": Preset("plms", 2), "fast": Preset("dpm++", 2, (500, 999))}
    monkeypatch.setattr(mini_presets, "CANDIDATES", few)
    words = command.split()
    code, out, err = script("mini_table", *words[2:], "--steps", 2, "--device", "cpu")
    assert code == 0 and "| shape |" in out, err
