"""Training an adapter, LoRA (Hu et al. 2021) or another kind: against its formula, through the loss, and from main.py
to an edit."""

import math
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.adapters import merge_into, read_adapter
from ldm.checkpoint.load import empty_model
from ldm.checkpoint.names import UNET
from ldm.models.diffusion.training import UNUSED_WITH_ONE_TOKEN
from ldm.modules.ema import LitEma
from ldm.pipeline import PaintByExample
from ldm.training.adapters import KINDS, AdapterCheckpoints, current_adapter, inject_adapter
from ldm.training.checkpoints import AtomicCheckpointIO, adapter_beside
from ldm.util import UserError
from tests.conftest import GOLDEN, ROOT, edited_pixels, training_batch

TINY = ROOT / "configs/tiny.yaml"
LORA = OmegaConf.load(ROOT / "configs/finetune_lora.yaml")["model"]["lora"]
TARGETS = list(LORA["target_modules"])
LAYER = UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


BIASES = 418_884  # numbers of the kind `biases` at full width: of the 1-D entries in golden/fullsize_keys.tsv


def trained_shapes(model, kind):
    """Of the weights that the kind trains, with one context token."""
    named = model.model.diffusion_model.named_parameters()
    return [p.shape for n, p in named if KINDS[kind].has(n, p) and not UNUSED_WITH_ONE_TOKEN.search(n)]


@pytest.fixture
def plain(tiny):
    return load_model(TINY, tiny)


@pytest.fixture
def injected(tiny):
    model = load_model(TINY, tiny)
    inject_adapter(model, "lora", LORA)
    return model


def disturb(model):
    """Makes B random, as after training."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)


def unet_inputs(batch=2):
    return torch.randn(batch, 9, 16, 16), torch.tensor([10, 800][:batch]), torch.randn(batch, 1, 40)


def predict(model, inputs):
    with torch.no_grad():
        return model.apply_model(*inputs)


def test_an_injected_model_starts_as_the_model_itself(plain, injected):
    inputs = unet_inputs()
    assert torch.equal(predict(plain, inputs), predict(injected, inputs))


def test_only_the_factors_train_and_their_number_is_right(injected):
    """Per transformer of width C: attn1's four C x C and attn2.to_out have 2 C r numbers each, attn2.to_v (40 -> C) has
    (40 + C) r. configs/tiny.yaml has three transformers of width 32 and four of 64."""
    injected.setup("fit")
    trained = {name: p for name, p in injected.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == 7 * 6 * 2
    assert sum(p.numel() for p in trained.values()) == 8 * (11 * (3 * 32 + 4 * 64) + 7 * 40)


def test_the_fast_networks_refuse_a_model_with_peft_layers(injected):
    """peft's layers show W_0 as their weight, so a pipeline that reads weights would leave the adapter out."""
    with pytest.raises(AssertionError, match="layers of an adapter: merge the adapter"):
        PaintByExample(injected)
    PaintByExample(injected, fast=False)


@pytest.mark.integration
def test_a_full_width_adapter_has_published_names_and_a_few_megabytes():
    """5 transformers of width 320, 5 of 640, 6 of 1280; a context of 768."""
    model = empty_model(ROOT / "configs/v1.yaml")
    chosen = {kind: trained_shapes(model, kind) for kind in KINDS}
    assert sum(map(math.prod, chosen["v"])) == 768 * (5 * 320 + 5 * 640 + 6 * 1280) == 9_584_640
    assert sum(map(math.prod, chosen["biases"])) == BIASES and all(len(shape) == 1 for shape in chosen["biases"])
    assert sum(map(min, chosen["singular"])) == 5 * 6 * 320 + 5 * 6 * 640 + 6 * (5 * 1280 + 768) == 71_808
    inject_adapter(model, "lora", LORA)
    adapter = current_adapter(model)
    published = {line.split("\t")[0] for line in (GOLDEN / "fullsize_keys.tsv").read_text().splitlines()}
    assert set(adapter.weights) <= published
    numbers = sum(tensor.numel() for tensor in adapter.tensors.values())
    assert numbers == 8 * (11 * (5 * 320 + 5 * 640 + 6 * 1280) + 16 * 768)
    assert 4 * numbers < 5e6


@pytest.mark.parametrize("ema", [False, True])
def test_steps_of_adamw_change_the_factors_and_nothing_else(injected, ema):
    """use_checkpoint is on, as in configs/tiny.yaml: recomputed activations must still reach the first layers."""
    injected.use_ema, injected.learning_rate, injected.scheduler_config = ema, 1e-2, None
    injected.setup("fit")
    injected.train()
    before = {name: tensor.clone() for name, tensor in injected.state_dict().items()}
    optimizer = injected.configure_optimizers()
    batch = training_batch()
    losses = []
    for _ in range(4):
        loss, _ = injected.batch_loss(batch, injected.make_draws(batch, [(0, 0), (0, 1)]), 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if ema:
            injected.model_ema(injected.model)
    assert losses[-1] < losses[0]
    for name, tensor in injected.state_dict().items():
        changes = ".lora_" in name or name.startswith("model_ema.")
        if not name.startswith("model_ema."):
            assert torch.equal(tensor, before[name]) != changes, name
    if ema:
        assert isinstance(injected.model_ema, LitEma) and len(injected.model_ema.buffer_names) == 7 * 6 * 2


@pytest.mark.parametrize("targets", [TARGETS, [*TARGETS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]])
def test_a_merged_adapter_computes_what_the_injected_one_does(tiny, targets):
    injected, plain = load_model(TINY, tiny), load_model(TINY, tiny)
    inject_adapter(injected, "lora", {"rank": 4, "alpha": 10, "target_modules": targets})
    disturb(injected)
    adapter, inputs = current_adapter(injected), unet_inputs()
    before, base = predict(plain, inputs), dict(plain.state_dict())
    merge_into(plain, [(adapter, 1.0)])
    expected = predict(injected, inputs)
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(predict(plain, inputs), expected, atol=1e-5, rtol=1e-5)
    after = plain.state_dict()
    assert {name for name in base if not torch.equal(base[name], after[name])} == set(adapter.weights)
    a, b = adapter.tensors[LAYER + ".lora_A.weight"], adapter.tensors[LAYER + ".lora_B.weight"]
    by_hand = base[LAYER + ".weight"].numpy() + 10 / 4 * np.einsum("or,ri->oi", b.numpy(), a.numpy())
    np.testing.assert_allclose(after[LAYER + ".weight"].numpy(), by_hand, atol=1e-6)
    assert all(p.requires_grad for p in plain.model.parameters())  # as it was: it could be trained on


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rank": 8}, "needs exactly rank, alpha and a list"),
        ({"rank": 8, "alpha": 8, "target_modules": "attn1.to_q"}, "needs exactly rank, alpha and a list"),
        ({"rank": 8, "alpha": 8, "target_modules": TARGETS, "dropout": 0.1}, "needs exactly rank, alpha and a list"),
        ({"rank": 8, "alpha": 8, "target_modules": [*TARGETS, "attn3.to_q"]}, "'attn3.to_q', which the UNet lacks"),
        ({"rank": 8, "alpha": 8, "target_modules": []}, "model.lora"),
        ({"rank": 0, "alpha": 8, "target_modules": TARGETS}, "model.lora"),
        ({"rank": 2.5, "alpha": 8, "target_modules": TARGETS}, "model.lora"),
        ({"rank": 8, "alpha": 0, "target_modules": TARGETS}, "its alpha is 0"),
        ({"rank": 8, "alpha": 8, "target_modules": ["norm1"]}, "model.lora"),
    ],
    ids=lambda x: "",
)
def test_a_wrong_lora_section_is_refused_by_name(plain, config, words):
    with pytest.raises(UserError, match=words):
        inject_adapter(plain, "lora", config)


SMALL = [
    *("--accelerator", "cpu", "--devices", 1, "--accumulate_grad_batches", 1, "--val_check_interval", 2),
    *("--limit_val_batches", 1, "data.params.num_workers=0", "lightning.images.steps=1", "lightning.images.count=1"),
    *("model.base_learning_rate=0.01", "data.params.batch_size=1", "lightning.trainer.check_val_every_n_epoch=null"),
]


def test_from_pictures_to_an_edit(script, edit_example, train, tiny, training_folder, tmp_path):
    """main.py is called as by a user, resumed with -r, and an edit uses the adapter."""
    run = tmp_path / "run"
    train(
        *("--base", TINY, "configs/finetune_lora.yaml", "-p", run, "--pretrained_model", tiny, "--max_steps", 3),
        *(f"data.params.dataset_dir={training_folder}", *SMALL),
    )
    last = run / "checkpoints/last.ckpt"
    adapter = read_adapter(run / "checkpoints/lora.safetensors")
    assert (adapter.rank, adapter.alpha) == (8, 8) and len(adapter.weights) == 7 * 6
    kept = torch.load(last, weights_only=True)
    assert all("lora_" in name for name in kept["state_dict"]) and len(kept["state_dict"]) == 7 * 6 * 2
    assert last.stat().st_size < 1.5e6 < tiny.stat().st_size  # factors and two moments, not the frozen model

    [second] = (run / "checkpoints").glob("step00000002-*.ckpt")  # the best so far, with its adapter
    earlier = read_adapter(adapter_beside(second))
    again = tmp_path / "again"
    shutil.copytree(run, again)
    train("-r", again / "checkpoints" / second.name)
    further = read_adapter(again / "checkpoints/lora.safetensors")
    for name, tensor in adapter.tensors.items():
        assert torch.equal(further.tensors[name], tensor) and not torch.equal(earlier.tensors[name], tensor), name

    assert edit_example(tmp_path / "a", tiny)[0] == 0
    code, _, err = edit_example(tmp_path / "b", tiny, "--lora", run / "checkpoints/lora.safetensors")
    assert code == 0, err
    assert np.abs(edited_pixels(tmp_path / "a") - edited_pixels(tmp_path / "b")).max() > 0
    code, _, err = script("convert_checkpoint", last, tmp_path / "x.safetensors")
    assert code == 2 and "is an adapter, not a model" in err

    other = {name: t * 1.01 if t.is_floating_point() else t for name, t in load_file(tiny).items()}
    other |= {name: t for name, t in load_file(tiny).items() if not name.startswith(UNET)}
    save_file(other, tmp_path / "other.safetensors")
    code, _, err = script("main", "-r", run, "--pretrained_model", tmp_path / "other.safetensors")
    assert code == 2 and "started from another model" in err, err[-2000:]


def test_a_training_checkpoint_converts_with_and_without_its_average(
    script, edit_example, train, tiny, training_folder, tmp_path
):
    """main.py's checkpoint, with optimizer states, loops, callbacks and model_ema.*, becomes a small file for
    editing."""
    train(
        *("--base", TINY, "-p", tmp_path / "run", "--pretrained_model", tiny, "--max_steps", 3, "--no-test"),
        f"data.params.dataset_dir={training_folder}",
        *("model.params.use_ema=true", *SMALL),
    )
    last = tmp_path / "run/checkpoints/last.ckpt"
    written = torch.load(last, weights_only=True)
    assert {"optimizer_states", "loops", "callbacks", "lr_schedulers"} <= written.keys()
    for name, flags in (("trained", []), ("averaged", ["--ema"])):
        code, _, err = script("convert_checkpoint", last, tmp_path / f"{name}.safetensors", *flags)
        assert code == 0, err
        assert edit_example(tmp_path / name, tmp_path / f"{name}.safetensors")[0] == 0
    trained, averaged = (load_file(tmp_path / f"{name}.safetensors") for name in ("trained", "averaged"))
    assert trained.keys() == averaged.keys() == read_checkpoint(tiny).keys()
    state = written["state_dict"]
    for name in trained:
        average = "model_ema." + name.removeprefix("model.").replace(".", "")
        if name in state:
            assert torch.equal(trained[name], state[name]), name
            assert torch.equal(averaged[name], state[average if name.startswith(UNET) else name]), name
    changed = [name for name in trained if not torch.equal(trained[name], averaged[name])]
    assert len(changed) > 100 and all(name.startswith(UNET) for name in changed)
    assert (tmp_path / "trained.safetensors").stat().st_size < 0.4 * last.stat().st_size


def test_a_checkpoint_holds_the_factors_and_its_adapter_the_average(injected, tmp_path):
    injected.use_ema = True
    injected.setup("fit")
    disturb(injected)  # the average is still where training began
    callback, checkpoint = AdapterCheckpoints(injected), {"state_dict": injected.state_dict()}
    callback.on_save_checkpoint(None, injected, checkpoint)
    assert all("lora_" in name or name.startswith("model_ema.") for name in checkpoint["state_dict"])
    callback.on_load_checkpoint(None, injected, checkpoint)
    path = tmp_path / "step00000001-loss0.5.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "step00000001-loss0.5-lora.safetensors",
        "step00000001-loss0.5.ckpt",
    ]
    assert not read_adapter(adapter_beside(path)).tensors[LAYER + ".lora_B.weight"].any()
    assert current_adapter(injected).tensors[LAYER + ".lora_B.weight"].all()
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not list(tmp_path.iterdir())

    with pytest.raises(UserError, match=r"the checkpoint lacks 170 tensors"):
        callback.on_load_checkpoint(None, injected, {"state_dict": {}})
    assert callback.state_key == "FactorsOnly"  # its key in the checkpoints of earlier versions
    callback.load_state_dict(callback.state_dict())
    with pytest.raises(UserError, match=r"started from another model"):
        callback.load_state_dict({"base": callback.base * 1.001})
