"""The small world's CLIP: its loss, its file, and what it recognises."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import load_file as read_safetensors
from safetensors.torch import save_file
from torch.utils.data import default_collate

from ldm.checkpoint.locate import MINI_CONFIG
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.evaluation.features import load_clip
from ldm.miniworld.captions import END, WORDS, caption_tokens
from ldm.miniworld.clip import Contrastive
from ldm.miniworld.crops import ReferenceCrops, bench_labels
from ldm.miniworld.parts import read_clip, zero_shot_accuracy
from ldm.miniworld.shapes import SHAPES
from ldm.models.first_stage import FirstStage
from ldm.modules.encoders.clip import ResNetTower, build_clip
from ldm.training.start import initial_model
from ldm.util import UserError, load_config
from tests.miniworld.conftest import MINI

CLIP_CONFIG = str(MINI / "clip.json")


def clip_and_batch(world, count=8):
    torch.manual_seed(1)
    data = ReferenceCrops("train", str(world / "world"), image_size=128)
    return Contrastive(CLIP_CONFIG).eval(), default_collate([data[i] for i in range(count)])


@torch.no_grad()
def test_the_contrastive_loss_is_clips(world):
    """It is open_clip's where all captions differ, averaged over the kinds of captions. Images with equal captions are
    targets of each other's captions."""
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
def test_the_padding_of_captions_is_not_read(world):
    model, _ = clip_and_batch(world)
    tokens = torch.from_numpy(caption_tokens("a solid red star"))[None]
    filled = tokens.clone()
    filled[:, 5:] = 7  # after the end
    assert tokens[0, 4] == END
    torch.testing.assert_close(model.clip.encode_text(tokens), model.clip.encode_text(filled))


def test_zero_shot_takes_the_nearest_captions(world):
    """A CLIP that sees and reads the attributes themselves is always right; one that sees wrong ones is never right."""
    shapes = torch.tensor([WORDS.index(shape) + 1 for shape in SHAPES])
    adjectives = ("solid", "striped", "dotted", "checked", "wavy", "halved")
    patterns = torch.tensor([WORDS.index(word) + 1 for word in adjectives])
    bench = COCOImageDataset(str(world / "bench"))
    known = list(bench_labels(bench.root).values())
    wanted = [torch.tensor([getattr(each, key) for each in known]) for key in ("shape", "pattern")]

    def reads(tokens, normalize):
        return torch.cat([(tokens[..., None] == numbers).any(1) for numbers in (shapes, patterns)], dim=1).float()

    def clip(shift):
        seen = [F.one_hot((each + shift) % count, count) for each, count in zip(wanted, (12, 6), strict=True)]
        visual = SimpleNamespace(image_size=16)
        return SimpleNamespace(encode_text=reads, encode_image=lambda _: torch.cat(seen, 1).float(), visual=visual)

    assert zero_shot_accuracy(clip(0), bench) == (1, 1)
    assert zero_shot_accuracy(clip(1), bench) == (0, 0)


def test_one_clip_for_captions_references_and_scores(world, tmp_path):
    """The table, the scores and the reference encoder read the file that training writes; a wrong file is an error."""
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
    torch.testing.assert_close(read_clip(CLIP_CONFIG, file).encode_image(batch["image"]), wanted)

    config = load_config(OmegaConf.merge(OmegaConf.load(MINI_CONFIG), OmegaConf.load(MINI / "prior.yaml")))
    trained, read = json.loads((MINI / "clip.json").read_text()), config.model.params.cond_stage_config.params.resnet
    del trained["vision_cfg"]["patch_size"]  # null, since a residual network has none
    assert {name: trained[name] for name in read} == OmegaConf.to_container(read)
    first_stage = FirstStage(config.model.params.first_stage_config)
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
    with pytest.raises(UserError, match="belongs to another config"):
        read_clip(CLIP_CONFIG, file)
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
    """The pooled feature is a weighted mean of the places' features; with equal weights it is their mean."""
    _, batch = clip_and_batch(world, 2)
    resnet = OmegaConf.to_container(OmegaConf.load(MINI_CONFIG).model.params.cond_stage_config.params.resnet)
    tower = ResNetTower(**resnet).eval()
    pool = tower.visual.attnpool
    with torch.no_grad():
        pool.q_proj.weight.zero_()
        pool.q_proj.bias.zero_()
        pool.positional_embedding.zero_()
        out = tower(batch["image"])
    places = out.last_hidden_state[:, 1:]  # the first is their mean, which attention also sees
    torch.testing.assert_close(out.pooler_output, places.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert torch.equal(out.last_hidden_state[:, 0], out.pooler_output)
