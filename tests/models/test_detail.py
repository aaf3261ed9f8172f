"""The detail path (ldm/models/detail): its attention by hand, what it leaves as it is, fast networks, hidden keys."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from ldm.checkpoint import load_model
from ldm.editing import painter as painter_module
from ldm.editing.details import adds_detail
from ldm.editing.inputs import Condition, Inputs
from ldm.editing.options import Sampling
from ldm.editing.references import fit_reference, object_in_reference
from ldm.models.detail.kinds import build_detail
from ldm.models.detail.path import GATE_RATE, Correction, joined, seen_at, self_attentions
from ldm.models.detail.places import places_in_reference, places_in_region, strides
from ldm.modules.detail import BlockDetail, add_detail
from ldm.pipeline import PaintByExample
from ldm.util import UserError
from tests.conftest import ROOT

REFERENCE = {"kind": "reference", "rank": 3, "alpha": 6, "size": 64}
PATCHES = {"kind": "patches", "rank": 3, "alpha": 6, "encoder": "clip", "width": 32}
KEEP = torch.ones(1, 1, 16, 16)
KEEP[..., 4:10, 2:10] = 0
KINDS = pytest.mark.parametrize("settings", [REFERENCE, PATCHES], ids=["reference", "patches"])


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(ROOT / "configs/tiny.yaml", tiny)


def path_of(model, settings, trained=True):
    path = build_detail(model.model.diffusion_model, settings)
    if trained:
        for name, parameter in path.named_parameters():
            torch.nn.init.normal_(parameter, std=0.2 if name.endswith(("gate", "lora_B")) else 0.1)
    return path.requires_grad_(False)


def with_path(model, path, **options):
    edit = PaintByExample(model, "full", **options)
    edit.detail = path
    return edit


def inputs(batch=2, counts=(), shown=None, size=64):
    image, mask = torch.rand(batch, 3, size, size) * 2 - 1, torch.ones(batch, 1, size, size)
    mask[..., 16:40, 8:40] = 0
    conditions = tuple(Condition((None,) * n) for n in counts)
    return Inputs(image, mask, torch.randn(sum(counts) or batch, 3, 224, 224), conditions, shown=shown)


def sampled(edit, given, **options):
    return edit.sample(given, range(len(given.image)), Sampling(steps=2, **options), progress=False)


def test_the_attention_by_hand():
    """softmax over [null; keys] of each head, in numpy, for the last 2 of 4 rows; the 3 hidden keys do not count."""
    torch.manual_seed(1)
    n, heads, m, d, positions = 2, 2, 5, 3, 4
    x, h = torch.randn(2, 2 * n, positions, heads * d, dtype=torch.float64)
    query, out = torch.randn(2, heads * d, heads * d, dtype=torch.float64)
    keys, values = torch.randn(2, n, heads, 1 + m, d, dtype=torch.float64)
    values[:, :, 0] = 0
    seen = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1]], dtype=torch.bool)
    places = torch.randn(n, heads * d, 2, 2, dtype=torch.float64)
    feed = torch.randn(3, heads * d, heads * d, dtype=torch.float64)
    found = add_detail(x, h, BlockDetail(query, out, feed, keys, values, places, seen[:, None, None])).numpy()
    inner, gate, outer = feed.numpy()
    assert np.array_equal(found[:n], x[:n].numpy())
    for i in range(n):
        read = np.zeros((positions, heads * d))
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            q = h[n + i].numpy() @ query.numpy().T[:, part] + places[i, part].flatten(1).T.numpy()
            weights = np.exp(q @ keys[i, head].numpy().T / np.sqrt(d)) * seen[i].numpy()
            read[:, part] = weights / weights.sum(axis=1, keepdims=True) @ values[i, head].numpy()
        gates = read @ gate.T
        fed = (h[n + i].numpy() @ inner.T * gates * scipy.stats.norm.cdf(gates)) @ outer.T
        np.testing.assert_allclose(found[n + i], x[n + i].numpy() + read @ out.numpy().T + fed, atol=1e-12)


def test_a_row_whose_keys_are_all_hidden_stays_as_it_is():
    x, keys = torch.randn(2, 4, 6), torch.randn(2, 2, 4, 3)
    values = torch.cat([torch.zeros(2, 2, 1, 3), torch.randn(2, 2, 3, 3)], dim=2)
    seen = torch.tensor([[True, False, False, False], [True, True, True, True]])[:, None, None]
    found = add_detail(
        x, x, BlockDetail(*torch.randn(2, 6, 6), torch.randn(3, 6, 6), keys, values, torch.randn(2, 6, 2, 2), seen)
    )
    assert torch.equal(found[0], x[0]) and not torch.equal(found[1], x[1])


def test_a_correction_is_low_rank():
    correction = Correction(5, 2, 8.0)
    assert torch.equal(correction.matrix(torch.eye(5)), torch.eye(5))
    torch.nn.init.normal_(correction.lora_B)
    expected = np.eye(5) + 8 / 2 * correction.lora_B.detach().numpy() @ correction.lora_A.detach().numpy()
    np.testing.assert_allclose(correction.matrix(torch.eye(5)).detach().numpy(), expected, atol=1e-6)


@KINDS
def test_an_untrained_path_changes_no_bit(model, settings):
    given, path = inputs(), path_of(model, settings, trained=False)
    for fast, sampling in ((True, {}), (True, {"sampler": "dpm++", "refresh": 2}), (False, {"scale": 1.0})):
        expected = sampled(PaintByExample(model, "full", fast), given, **sampling)
        assert torch.equal(sampled(with_path(model, path, fast=fast), given, **sampling), expected)


@KINDS
def test_a_trained_path_changes_edits_by_its_scale(model, settings):
    given, edit = inputs(), with_path(model, path_of(model, settings))
    plain = sampled(PaintByExample(model, "full"), given)
    assert torch.equal(sampled(edit, given, detail_scale=0.0), plain)
    changes = [(sampled(edit, given, detail_scale=s) - plain).abs().mean().item() for s in (0.01, 0.1, None)]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_every_window_reads_the_reference(model):
    """A picture that one window shows whole is painted as without windows."""
    given, edit = inputs(1), with_path(model, path_of(model, PATCHES))
    found = sampled(edit, replace(given, windows=True))
    torch.testing.assert_close(found, sampled(edit, given), atol=1e-5, rtol=1e-5)
    assert (found - sampled(PaintByExample(model, "full"), given)).abs().max() > 1e-3


@KINDS
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_fast_networks_compute_the_same(model, settings, scale):
    shown = torch.zeros(3, 1, 224, 224)
    shown[:, :, :, :150] = 1
    given, path = inputs(counts=(2, 1), shown=shown), path_of(model, settings)
    plain, fast = (sampled(with_path(model, path, fast=each), given, scale=scale) for each in (False, True))
    assert (plain - sampled(PaintByExample(model, "full"), given, scale=scale)).abs().max() > 0.01
    torch.testing.assert_close(fast, plain, atol=2e-3, rtol=1e-3)


@KINDS
def test_predictions_for_the_learned_vector_are_the_models_own(model, settings):
    """So guidance amplifies what the path adds."""
    path, unet = path_of(model, settings), model.model.diffusion_model
    x, t, c, v = torch.randn(1, 9, 16, 16), torch.tensor([500]), torch.randn(1, 1, 40), torch.randn(1, 1, 40)
    edit = with_path(model, path, fast=False)
    with torch.no_grad():
        encoded = path.encode(edit.networks, torch.randn(1, 3, 224, 224))
        details = path(unet, path.memories(edit.networks, encoded, c), KEEP)
        both = unet(x, t, torch.cat([v, c]), details)
        own = unet(x, t, torch.cat([v, c]))
        alone = unet(x, t, c, details)
    assert torch.equal(both[0], own[0]) and (both[1] - own[1]).abs().max() > 1e-3
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)


def test_every_block_reads_what_its_self_attention_saw(model):
    """Keys and values by hand."""
    path, unet = path_of(model, REFERENCE), model.model.diffusion_model
    memories = [torch.randn(1, 4, attn.to_q.in_features) for attn in self_attentions(unet)]
    for i, (detail, memory) in enumerate(zip(path(unet, memories, KEEP, scale=0.5), memories, strict=True)):
        attn, block = self_attentions(unet)[i], path.blocks[i]
        v = memory @ (attn.to_v.weight + 2 * block.to_v.lora_B @ block.to_v.lora_A).T
        v = (0.5 * GATE_RATE * block.gate * v).view(1, 4, attn.heads, -1).transpose(1, 2)
        torch.testing.assert_close(detail.values[:, :, 1:], v, atol=1e-5, rtol=1e-5)
        assert not detail.values[:, :, 0].any()
        k = memory @ (attn.to_k.weight + 2 * block.to_k.lora_B @ block.to_k.lora_A).T
        for j, (row, column) in enumerate([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]):
            angles = np.pi / 2 * np.array([row, 2 * row, 4 * row, column, 2 * column, 4 * column])
            waves = torch.tensor(np.concatenate([np.sin(angles), np.cos(angles)]), dtype=torch.float32)
            k[0, j] += block.key_place.weight @ waves
        torch.testing.assert_close(
            detail.keys[0, :, 1:], k.view(4, attn.heads, -1).transpose(0, 1), atol=1e-5, rtol=1e-5
        )


def test_places_are_those_in_the_regions_box():
    """Rows 4 to 9 and columns 2 to 9 are painted: the middles of cells, from the box's middle, in half its sides."""
    found = places_in_region(KEEP, 2)[0]
    rows, columns = (np.arange(1, 16, 2) - 7) / 3, (np.arange(1, 16, 2) - 6) / 4
    expected = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).clip(-2, 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert places_in_region(torch.ones(1, 1, 4, 4), 2)[0, 0].tolist() == [[-0.5, -0.5], [-0.5, 0.5]]
    assert places_in_reference(2).tolist() == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]


def test_equal_places_attract_before_training(model):
    """Without content, a query's nearest key is on average over 20 paths the one at its own place in the box, wherever
    the box is."""
    unet, keep = model.model.diffusion_model, torch.ones(1, 1, 16, 16)
    keep[..., 8:16, 4:12] = 0
    memories = [torch.zeros(1, 16, attn.to_q.in_features) for attn in self_attentions(unet)]
    stride, products = strides(unet)[0], 0.0
    for seed in range(20):
        torch.manual_seed(seed)
        detail = path_of(model, REFERENCE, trained=False)(unet, memories, keep)[0]
        inside = detail.places[0, :, 8 // stride : 16 // stride, 4 // stride : 12 // stride]
        products += torch.einsum(
            "hmd,hdyx->yxm", detail.keys[0, :, 1:], inside.unflatten(0, (detail.keys.shape[1], -1))
        )
    step = len(products) // 4
    for i, j in ((0, 0), (1, 2), (3, 0)):
        assert products[i * step, j * step].argmax() == 4 * i + j


@KINDS
def test_a_rectangle_reads_what_the_whole_picture_does(model, settings):
    """The second of two equal evaluations computes the rectangle around the region alone."""
    given, edit = inputs(1), with_path(model, path_of(model, settings))
    with torch.no_grad():
        encoded = edit.detail.encode(edit.networks, given.reference)
        c = torch.randn(1, 1, 40)
        details = edit.detail(model.model.diffusion_model, edit.detail.memories(edit.networks, encoded, c), KEEP)
        inpaint = torch.cat([torch.randn(1, 4, 16, 16), KEEP], dim=1)
        eps = edit.networks.denoiser(inpaint, c, refresh=2, details=details)
        x = torch.randn(1, 4, 16, 16)
        first, second = eps(x, 500), eps(x, 500)
    torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-4)


def test_references_of_an_edit_are_joined_and_what_is_missing_is_hidden():
    memory = torch.arange(12.0).view(3, 4, 1)
    assert joined(memory, None, None) == (memory, None)
    assert joined(memory, None, (1, 1, 1)) == (memory, None)
    both, seen = joined(memory, None, (2, 1))
    assert both[0].flatten().tolist() == list(range(8)) and both[1].flatten()[:4].tolist() == [8, 9, 10, 11]
    assert seen.tolist() == [[True] * 8, [True] * 4 + [False] * 4]
    assert joined(torch.zeros(4, 4, 1), None, (2, 2))[1] is None


def test_cells_that_the_object_covers_by_half_are_seen():
    shown = torch.zeros(1, 1, 8, 8)
    shown[..., :4, :5] = 1  # of the second column of cells, half of each upper one; the middle is at 4
    assert seen_at(None, 2) is None
    assert seen_at(shown, 2).tolist() == [[True, False, False, False]]
    assert seen_at(torch.ones(1, 1, 8, 8), 4).all()


def test_hidden_parts_of_a_reference_do_not_count(model):
    path = path_of(model, PATCHES)
    memories = [torch.randn(1, 16, 40)] * len(path.blocks)
    shown = torch.zeros(1, 1, 8, 8)
    shown[..., :4] = 1  # the left half: cells 0, 1 of every row of four
    other = memories[0].clone()
    other.view(1, 4, 4, 40)[:, :, 2:] += 1
    unet, x, t, c = model.model.diffusion_model, torch.randn(1, 9, 16, 16), torch.tensor([9]), torch.randn(1, 1, 40)
    with torch.no_grad():
        found = [unet(x, t, c, path(unet, each, KEEP, shown)) for each in (memories, [other] * len(memories))]
        whole = unet(x, t, c, path(unet, memories, KEEP))
    assert torch.equal(*found) and (found[0] - whole).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "magic"}, "its kind is 'magic': use one of reference, patches"),
        ({**REFERENCE, "rank": 0}, "its rank is 0"),
        ({**REFERENCE, "alpha": -1}, "its alpha is -1"),
        ({**REFERENCE, "size": "large"}, "its size is 'large'"),
        ({**REFERENCE, "width": 3}, "do not fit kind reference .*width"),
        ({**PATCHES, "encoder": None}, "do not fit kind patches .*encoder"),
        ({"kind": []}, r"its kind is \[\]"),
        ({**REFERENCE, "alpha": 10**400}, "do not fit kind reference"),
        ({**PATCHES, "width": -1}, "do not fit kind patches"),
        (
            {**PATCHES, "encoder": "https://example.org/dino"},
            "its encoder is .*: use clip, dinov2, or a folder",
        ),
    ],
    ids=lambda x: "",
)
def test_wrong_settings_are_refused_by_name(model, settings, words):
    with pytest.raises(UserError, match=words):
        build_detail(model.model.diffusion_model, settings)


def test_an_encoder_of_another_width_is_refused(model):
    path = path_of(model, {**PATCHES, "width": 33})
    with pytest.raises(UserError, match="tokens of width 32, not 33"):
        path.encode(PaintByExample(model, "full").networks, torch.randn(1, 3, 224, 224))


def test_dinov2s_patches(model, tmp_path):
    """A tiny DINOv2 from a folder, against a call by hand."""
    from transformers import Dinov2Config, Dinov2Model

    from ldm.modules.encoders.dinov2 import load_dinov2

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14, image_size=28)
    dino = Dinov2Model(config).eval()
    dino.save_pretrained(tmp_path)
    path = path_of(model, {**PATCHES, "encoder": str(tmp_path), "width": 16})
    pixels = torch.rand(1, 3, 224, 224)
    clip = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]).view(2, 3, 1, 1)
    imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    found = path.encode(PaintByExample(model, "full").networks, (pixels - clip[0]) / clip[1])
    with torch.no_grad():
        expected = dino((pixels - imagenet[0]) / imagenet[1]).last_hidden_state[:, 1:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    load_dinov2.cache_clear()
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_dinov2("judge", str(tmp_path / "missing"))


def test_a_scale_without_a_path_or_out_of_range_is_refused(model):
    with pytest.raises(UserError, match="no effect without a detail path"):
        sampled(PaintByExample(model, "full"), inputs(1), detail_scale=0.5)
    with pytest.raises(UserError, match=r"detail_scale 1\.5 is out of range"):
        Sampling(detail_scale=1.5)
    edit = with_path(model, path_of(model, PATCHES))
    with pytest.raises(UserError, match="does not go with keep_layout"):
        sampled(edit, inputs(1), keep_layout="ddpm", sampler="ddim")
    with pytest.raises(UserError, match="does not go with mix"):
        sampled(edit, replace(inputs(1, (2,)), conditions=(Condition((None, None), mix=0.5),)))
    for used in ("together", "mix"):
        assert adds_detail(edit.detail, Sampling(), False, False)
        with pytest.raises(UserError, match=f"does not go with {used}"):
            adds_detail(edit.detail, Sampling(), used == "together", used == "mix")
        assert not adds_detail(edit.detail, Sampling(detail_scale=0), True, True)


def test_no_object_is_searched_for_where_nothing_of_the_path_is_wanted(model, example, monkeypatch):
    """In an opaque reference that takes seconds."""
    photo, mask, reference = example.values()
    searched = []
    found = lambda picture, *_: searched.append(picture) or Image.new("L", picture.size, 255)  # noqa: E731
    monkeypatch.setattr(painter_module, "object_in_reference", found)
    edit = with_path(model, path_of(model, PATCHES))
    plain = PaintByExample(model, "full")(photo, mask, reference, steps=1)
    assert plain.tobytes() == edit(photo, mask, reference, steps=1, detail_scale=0).tobytes() and not searched
    assert plain.tobytes() != edit(photo, mask, reference, steps=1).tobytes() and len(searched) == 1


def test_where_the_object_is_in_a_reference():
    """By its transparency, or found; a picture without an object that stands out is shown whole."""
    picture = Image.new("RGBA", (60, 40), (200, 30, 30, 0))
    picture.paste((200, 30, 30, 255), (10, 5, 40, 35))
    assert fit_reference(picture).size == object_in_reference(picture).size == (30, 30)
    assert np.asarray(object_in_reference(picture)).min() == 255
    padded = np.asarray(object_in_reference(picture.crop((0, 0, 40, 40)).resize((80, 40)), "pad"))
    assert padded.shape[0] == padded.shape[1] and 0 in padded
    opaque = Image.new("RGB", (60, 40), "white")
    opaque.paste((200, 30, 30), (15, 10, 45, 30))
    found = np.asarray(object_in_reference(opaque)) == 255
    assert found[12:28, 17:43].all() and not found[:6].any() and not found[:, :10].any()
    assert np.asarray(object_in_reference(Image.new("RGB", (60, 40), "white"))).min() == 255
