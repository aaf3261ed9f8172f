"""Kinds of adapters besides LoRA: what trains and what does not, closed forms, files, stacks, runs that go on."""

import re
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import load_model
from ldm.checkpoint.adapters import Adapter, merge, merge_into, read_adapter, read_stack, write_adapter
from ldm.checkpoint.names import UNET
from ldm.editing.metadata import read_settings
from ldm.pipeline import PaintByExample
from ldm.training.adapters import KINDS, adapter_kind, current_adapter, inject_adapter
from ldm.util import UserError
from tests.conftest import ROOT, edited_pixels, training_batch

TINY = ROOT / "configs/tiny.yaml"
LORA = OmegaConf.load(ROOT / "configs/finetune_lora.yaml")["model"]["lora"]
CHANGED = {
    "v": r"attn2\.to_v\.weight$",
    "biases": r"\.bias$",  # and norms' scales
    "singular": r"attn1\.to_(q|k|v|out\.0)\.weight$|attn2\.to_(v|out\.0)\.weight$",
}


def predict(model):
    torch.manual_seed(0)
    with torch.no_grad():
        return model.apply_model(torch.randn(2, 9, 16, 16), torch.tensor([10, 800]), torch.randn(2, 1, 40))


def is_norm(module):
    return isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm))


def take_steps(model, count=2):
    model.learning_rate, model.scheduler_config = 1e-2, None
    model.setup("fit")
    optimizer, batch = model.configure_optimizers(), training_batch()
    for _ in range(count):
        loss, _ = model.batch_loss(batch, model.make_draws(batch, [(0, 0), (0, 1)]), 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_change_what_the_kind_names_and_a_file_adds_the_same(kind, tiny, tmp_path):
    plain, model = load_model(TINY, tiny), load_model(TINY, tiny)
    before, base = predict(plain), plain.state_dict()
    inject_adapter(model, kind)
    assert torch.equal(predict(model), before)  # W = W_0 at the start, to the bit
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    take_steps(model)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)

    write_adapter(current_adapter(model), tmp_path / "mine.safetensors")
    assert read_adapter(tmp_path / "mine.safetensors").tensors.keys() == current_adapter(model).tensors.keys()
    merge_into(plain, read_stack(tmp_path / "mine.safetensors"))
    torch.testing.assert_close(predict(plain), predict(model), atol=1e-5, rtol=1e-5)
    assert (predict(plain) - before).abs().max() > 1e-3
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, base[name])}
    dead = re.compile(r"transformer_blocks\.\d+\.norm2\.")
    names = {n for n in base if n.startswith(UNET) and re.search(CHANGED[kind], n)}
    if kind == "biases":
        names |= {f"{n}.weight" for n, module in plain.model.named_modules(prefix="model") if is_norm(module)}
    expected = {name for name in names if not dead.search(name)}
    assert changed == expected
    with pytest.raises(AssertionError, match="merge the adapter"):
        PaintByExample(model)


def test_singular_values_are_shifted_and_never_negative():
    """Against the definition W = U diag(max(S + d, 0)) V^T in float64; a convolution counts as a matrix."""
    weight, shift = torch.randn(6, 4, 3, 3), torch.linspace(1, -9, 6)
    u, s, vh = torch.linalg.svd(weight.double().view(6, 36), full_matrices=False)
    expected = u @ torch.diag((s + shift.double()).clamp(min=0)) @ vh
    for numbers, wanted in ((shift, expected), (torch.zeros(6), weight.double().view(6, 36))):
        merged = merge({"a.weight": weight}, [(Adapter({"a.weight.singular": numbers}), 1.0)])["a.weight"]
        torch.testing.assert_close(merged.double().view(6, 36), wanted, atol=1e-5, rtol=1e-5)
    assert torch.linalg.svdvals(expected).min() < 1e-9 < s.min()  # d was below -S somewhere


def test_a_stack_adds_the_scaled_changes_of_all(tmp_path):
    """Also of different kinds on the same weight."""
    weights = {"a.weight": torch.randn(5, 4), "a.bias": torch.randn(5)}
    a, b, d = torch.randn(2, 4), torch.randn(5, 2), torch.randn(5, 4)
    low_rank = Adapter({"a.lora_A.weight": a, "a.lora_B.weight": b}, 2, 4.0)
    whole = Adapter({"a.weight.delta": d, "a.bias.delta": d[:, 0].clone()})
    for name, adapter in (("x", low_rank), ("y", whole)):
        write_adapter(adapter, tmp_path / name)
    merged = merge(weights, read_stack([tmp_path / "x", tmp_path / "y"], [0.5, -2.0]))
    np.testing.assert_allclose(merged["a.weight"], weights["a.weight"] + 0.5 * 2 * (b @ a) - 2 * d, atol=1e-5)
    np.testing.assert_allclose(merged["a.bias"], weights["a.bias"] - 2 * d[:, 0], atol=1e-6)
    assert [scale for _, scale in read_stack((tmp_path / "x", tmp_path / "y"), 0.5)] == [0.5, 0.5]
    with pytest.raises(UserError, match="lora has 2 files and lora_scale 3 numbers"):
        read_stack([tmp_path / "x", tmp_path / "y"], [1.0, 1.0, 1.0])


def test_adapters_of_other_models_are_refused_by_name(tmp_path):
    weights = {"a.weight": torch.randn(5, 4), "learnable_vector": torch.randn(1, 1, 64)}
    v = weights["learnable_vector"]
    related = v + 0.1 * torch.randn_like(v)
    assert merge(weights, [(Adapter({"a.weight.delta": torch.zeros(5, 4)}, v=related), 1.0)])
    for tensors, own, words in (
        ({"a.weight.delta": torch.zeros(5, 3)}, None, r"does not fit the model's a.weight \(5, 4\)"),
        ({"a.weight.singular": torch.zeros(5)}, None, r"does not fit the model's a.weight \(5, 4\)"),
        ({"b.weight.delta": torch.zeros(5, 4)}, None, "the model lacks 1 tensor"),
        ({"a.weight.delta": torch.zeros(5, 4)}, torch.randn(64), "belongs to another model"),
        ({"a.weight.delta": torch.zeros(5, 4)}, torch.randn(65), "belongs to another model"),
    ):
        write_adapter(Adapter(tensors, v=own), tmp_path / "my.safetensors")
        with pytest.raises(UserError, match=rf"^lora {tmp_path / 'my.safetensors'}.*{words}"):
            merge(weights, read_stack(tmp_path / "my.safetensors"))


def test_a_config_names_the_kind():
    assert adapter_kind({}) is None and adapter_kind({"lora": LORA}) == "lora"
    assert adapter_kind({"lora": LORA, "adapter": "v"}) == "v"
    with pytest.raises(UserError, match=r"model\.adapter is w: use one of lora, v, biases, singular"):
        adapter_kind({"adapter": "w"})


def test_a_run_goes_on_to_the_bit_and_edits_take_a_stack(
    script, edit_example, tiny, training_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    run, again = tmp_path / "run", tmp_path / "again"
    flags = ["--accelerator", "cpu", "--devices", 1, "--accumulate_grad_batches", 1, "--val_check_interval", 1]
    flags += ["--limit_val_batches", 1, "data.params.num_workers=0", "lightning.images.steps=1", "--no-test"]
    flags += ["lightning.images.count=1", "model.base_learning_rate=0.01", "data.params.batch_size=1"]
    flags += ["model.adapter=v", "--max_steps", 2, f"data.params.dataset_dir={training_folder}"]
    flags += ["data.params.prior=" + str(training_folder), "data.params.prior_share=0.5"]
    base = ["--base", TINY, "configs/finetune_lora.yaml", "-p", run, "--pretrained_model", tiny]
    code, out, err = script("main", *base, *flags)
    assert code == 0, err[-3000:]
    assert "lora.safetensors" in out
    shutil.copytree(run, again)
    [first] = (again / "checkpoints").glob("step00000001-*.ckpt")
    code, _, err = script("main", "-r", first, "--no-test")
    assert code == 0, err[-3000:]
    adapter, further = (read_adapter(each / "checkpoints/lora.safetensors") for each in (run, again))
    assert len(adapter.weights) == 7 and all(name.endswith("attn2.to_v.weight") for name in adapter.weights)
    assert all(torch.equal(further.tensors[name], tensor) for name, tensor in adapter.tensors.items())

    file = run / "checkpoints/lora.safetensors"
    stack = ["--lora", file, "--lora", file, "--lora_scale", 1, "--lora_scale", -1]
    code, _, err = edit_example(tmp_path / "a", tiny, *stack)
    assert code == 0 and edit_example(tmp_path / "b", tiny)[0] == 0, err
    assert np.array_equal(edited_pixels(tmp_path / "a"), edited_pixels(tmp_path / "b"))
    made = tmp_path / "a/results/example_2_321.png"
    assert read_settings(made)["lora"] == [file.name, file.name] and read_settings(made)["lora_scale"] == [1.0, -1.0]
    code, _, err = script("inference", "--from", made, "--outdir", tmp_path / "c")
    assert code == 0 and np.array_equal(edited_pixels(tmp_path / "c"), edited_pixels(tmp_path / "a")), err
