"""Training a detail path: what trains, cached latents, and from main.py to an edit."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from ldm.checkpoint import load_model
from ldm.checkpoint.adapters import Adapter, write_adapter
from ldm.checkpoint.detail import load_detail, read_detail, write_detail
from ldm.checkpoint.load import empty_model
from ldm.data.latents import Description, LatentDataset
from ldm.data.sample import Recipe
from ldm.speed.training import estimate_memory
from ldm.training.adapters import adapter_kind
from ldm.training.latents import SameNetworks, fingerprint
from ldm.training.start import initial_model
from ldm.util import UserError, load_config
from tests.conftest import ROOT, edited_pixels, take_steps, training_batch
from tests.documents import blocks, commands
from tests.training.test_adapters import SMALL

TINY = ROOT / "configs/tiny.yaml"
REFERENCE = {"size": 64, "rank": 4, "alpha": 4}
TOY_DETAIL = [
    *("model.params.detail.size=64", "model.params.detail.rank=4"),
    "model.params.scheduler_config.params.warm_up_steps=[1]",
]
PATCHES = {"kind": "patches", "size": None, "encoder": "clip", "width": 32, "rank": 4, "alpha": 4}


def config_of(tiny, detail):
    files = [load_config(TINY), load_config(ROOT / "configs/detail.yaml")]
    changes = {"model": {"pretrained_model": str(tiny), "params": {"detail": detail, "scheduler_config": None}}}
    return OmegaConf.merge(*files, changes)


@pytest.mark.parametrize("detail", [REFERENCE, PATCHES], ids=["reference", "patches"])
def test_steps_of_adamw_change_the_path_and_nothing_else(tiny, detail):
    """Its first loss is the model's own; every weight of the path has a gradient; dropped samples see nothing of it."""
    config = config_of(tiny, detail)
    plain = initial_model(OmegaConf.merge(load_config(TINY), {"model": {"params": {"min_snr_gamma": 0.1}}}), str(tiny))
    model = initial_model(config)
    for each in (plain, model):
        each.learning_rate = 1e-2
        each.setup("fit")
        each.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = training_batch()
    batch["ref_mask"] = torch.ones(2, 1, 224, 224)
    draws = model.make_draws(batch, [(0, 0), (0, 1)])
    losses = take_steps(model, model.configure_optimizers(), batch, draws, count=4)
    assert losses[0] == plain.batch_loss(batch, draws, 0.0)[0].item() and losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("detail."), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) or name.startswith("detail."), name
    assert model.batch_loss(batch, draws, 1.0)[0].item() == plain.batch_loss(batch, draws, 1.0)[0].item()
    batch["ref_mask"].zero_()  # nothing of the reference is shown
    assert model.batch_loss(batch, draws, 0.0)[0].item() == plain.batch_loss(batch, draws, 0.0)[0].item()

    encoded = model.encode_batch(batch | {"ref_mask": torch.ones(2, 1, 224, 224)})
    again = model.encode_batch(encoded)
    assert again.keys() == encoded.keys() and {"ref_detail", "ref_mask"} <= encoded.keys()


@pytest.mark.parametrize("detail", [{}, {"kind": "patches", "size": None, "encoder": "clip", "width": 1024}])
def test_at_full_size(detail):
    """On the meta device and with fake tensors: the file is below 250 MB, a guided step costs little more, training
    takes less than half of 24 GB.

    By hand, of the kind `reference`: 16 blocks of width C have 4 * 2 C r numbers, a gate and a null key of C each, two
    maps of places, 12 C each, and a feed-forward of 3 C^2. The reference is read in one row of two."""
    change = {"model": {"params": {"detail": detail}}}
    config = OmegaConf.merge(load_config(ROOT / "configs/v1.yaml"), load_config(ROOT / "configs/detail.yaml"), change)
    model = empty_model(config).requires_grad_(False)
    numbers = sum(parameter.numel() for parameter in model.detail.parameters())
    if not detail:
        widths = np.array([320] * 5 + [640] * 5 + [1280] * 6)
        assert numbers == ((8 * 64 + 2 + 2 * 12) * widths + 3 * widths**2).sum()
        memory = estimate_memory(config, 4, torch.bfloat16, True)
        assert memory.static + memory.activations < 12e9
    assert 4 * numbers < 250e6
    with torch.device("meta"):
        x, t, both = torch.empty(1, 9, 64, 64), torch.empty(1), torch.empty(2, 1, 768)
        encoded = torch.empty(1, 256, 1024) if detail else torch.empty(1, 4, 32, 32)
        memories = model.detail.memories(model, encoded, both[:1])
        details = model.detail(model.model.diffusion_model, memories, torch.ones(1, 1, 64, 64))
    flops = []
    for given in (None, details):
        with FlopCounterMode(display=False) as counter:
            model.model(x, t, both, given)
        flops.append(counter.get_total_flops())
    assert 1 < flops[1] / flops[0] < 1.08, flops


def test_from_pictures_to_an_edit(script, edit_example, train, tiny, training_folder, tmp_path):
    """main.py is called as by a user, resumed with -r, and edits use the path; a path of zeros changes no bit."""
    run = tmp_path / "run"
    out = train(
        *("--base", TINY, "configs/detail.yaml", "-p", run, "--pretrained_model", tiny, "--max_steps", 2),
        *(
            f"data.params.dataset_dir={training_folder}",
            *SMALL,
            *TOY_DETAIL,
        ),
    )
    file = run / "checkpoints/detail.safetensors"
    assert f"to edit with: --detail {file}" in out
    settings, tensors = read_detail(file)
    assert settings == {"kind": "reference", "rank": 4, "alpha": 64, "size": 64}
    kept = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert {name.removeprefix("detail.") for name in kept["state_dict"]} == tensors.keys()
    train("-r", run, "--max_steps", 3)
    later = read_detail(file)[1]
    assert all(not torch.equal(later[name], tensor) for name, tensor in tensors.items() if name.endswith("gate"))

    zero = tmp_path / "zero.safetensors"
    write_detail(settings, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, zero)
    for name, flags in (("plain", ()), ("path", ("--detail", file)), ("zero", ("--detail", zero))):
        code, _, err = edit_example(tmp_path / name, tiny, *flags)
        assert code == 0, err
    plain, path, nothing = (edited_pixels(tmp_path / name) for name in ("plain", "path", "zero"))
    assert np.abs(plain - path).max() > 0 and np.array_equal(plain, nothing)

    code, _, err = edit_example(tmp_path / "wrong", tiny, "--detail", tiny)
    assert code == 2 and "has no settings in its metadata" in err
    assert edit_example(tmp_path / "wrong", tiny, "--detail", tmp_path / "missing.safetensors")[0] == 2
    code, _, err = edit_example(tmp_path / "wrong", tiny, "--detail_scale", 0.5)
    assert code == 2 and "name one with --detail" in err


def test_the_pages_commands_from_products_to_an_edit(script, tiny, tmp_path, monkeypatch):
    """docs/likeness.md, as printed, with the tiny model and few steps."""
    (table,) = (block for block in blocks("csv") if block.startswith("path,x0,y0,x1,y1,object"))
    for kind in ("images", "masks"):
        (tmp_path / "products" / kind).mkdir(parents=True)
    (tmp_path / "products/boxes.csv").write_text(table)
    for line in table.splitlines()[1:]:
        name, *box, _ = line.split(",")
        mask = Image.new("L", (160, 140))
        mask.paste(255, tuple(map(int, box)))
        mask.save(tmp_path / "products/masks" / Path(name).with_suffix(".png"))
        Image.new("RGB", mask.size, "orange").save(tmp_path / "products/images" / name)
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    small = {
        "scripts/read_bbox.py": [],
        "main.py": ["--pretrained_model", tiny, "--max_steps", 2, *SMALL, *TOY_DETAIL],
        "scripts/inference.py": f"--config {TINY} --ckpt {tiny} --device cpu --ddim_steps 2 --H 64 --W 64".split(),
    }
    for command, (name, flags) in zip((c for c in commands() if "products" in c), small.items(), strict=True):
        words = command.replace("configs/v1.yaml", "configs/tiny.yaml").replace("--gpus 0 ", "").split()
        assert words[1] == name
        code, _, err = script(Path(name).stem, *words[2:], *flags)
        assert code == 0, f"{command}\n{err[-3000:]}"
    assert read_detail(tmp_path / "logs/products/checkpoints/detail.safetensors")[0]["kind"] == "reference"
    assert (tmp_path / "results/example_2_321.png").exists()


@pytest.mark.parametrize("size", [None, 128, 64])
def test_latents_for_another_path_are_refused(tiny, tmp_path, size):
    """What a reference was encoded to depends on the path's kind and size, not on its rank; a model without a path does
    not read it. size: None, made without a path."""
    made = None if size is None else {"kind": "reference", "size": size}
    model, plain = initial_model(config_of(tiny, {**REFERENCE, "rank": 7})), initial_model(load_config(TINY), str(tiny))
    recipe = asdict(Recipe(image_size=64))
    (tmp_path / "latents").mkdir()
    Description(fingerprint(plain), recipe, 0, 0, 1, 1, "float32", made).write(tmp_path / "latents", "train")
    data = SimpleNamespace(dataset=lambda split: LatentDataset(split, tmp_path, image_size=64))
    SameNetworks().on_train_start(SimpleNamespace(datamodule=data), plain)
    refused = pytest.raises(UserError, match="do not have what this run's detail path reads")
    with nullcontext() if size == REFERENCE["size"] else refused:
        SameNetworks().on_train_start(SimpleNamespace(datamodule=data), model)


def test_an_adapter_beside_a_path_is_refused():
    with pytest.raises(UserError, match="an adapter and a detail path"):
        adapter_kind({"adapter": "v", "params": {"detail": REFERENCE}})


def test_files_for_other_models_are_refused_by_name(tiny, tmp_path):
    model = load_model(TINY, tiny)
    own = initial_model(config_of(tiny, REFERENCE)).detail
    tensors, path = dict(own.state_dict()), tmp_path / "detail.safetensors"
    write_detail(own.settings, tensors, path)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_detail(model, path).state_dict().items())
    gate = "blocks.0.gate"
    for changed, words in (
        ({name: t for name, t in tensors.items() if name != gate}, f"lacks 1 tensor .{gate}"),
        (tensors | {"blocks.9.gate": torch.ones(3)}, "has 1 tensor .blocks.9.gate. too many"),
        (tensors | {gate: torch.ones(3)}, r"blocks.0.gate is \(3,\) instead of \(32,\)"),
    ):
        write_detail(own.settings, changed, path)
        with pytest.raises(UserError, match=f"does not fit the model .*{words}.*: use it with the model"):
            load_detail(model, path)
    write_adapter(Adapter({"a.weight.delta": torch.ones(2, 2)}), path)
    with pytest.raises(UserError, match="give it with --lora"):
        load_detail(model, path)
    write_detail({**own.settings, "size": 72}, tensors, path)
    with pytest.raises(UserError, match=r"its size 72 is no multiple of the model's \d+ pixels: use 64"):
        load_detail(model, path)
    write_detail(own.settings, tensors | {gate: tensors[gate].to(torch.float8_e4m3fn)}, path)
    load_detail(model, path)
    write_detail(own.settings, tensors | {gate: torch.full((32,), torch.nan)}, path)
    with pytest.raises(UserError, match=r"blocks\.0\.gate is not finite"):
        load_detail(model, path)
