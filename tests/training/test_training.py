"""Training: what a step computes, and real runs of main.py that are divided, killed, told to stop, refused a disk."""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.models.diffusion.conditioning import reference_token, unconditional_token
from ldm.models.diffusion.draws import Draws
from ldm.modules.ema import LitEma
from ldm.training.run import devices_of, trainer_options
from ldm.training.start import initial_model
from ldm.util import UserError, load_config
from tests.conftest import GOLDEN, ROOT

pytestmark = pytest.mark.integration

# ------------------------------------------------------------------------------------------------ a step


def test_draws_depend_on_the_sample_alone():
    alone = [Draws.from_seeds([(1, 2, i)], (4, 6, 8), 1000, "cpu") for i in range(5)]
    together = Draws.from_seeds([(1, 2, i) for i in range(5)], (4, 6, 8), 1000, "cpu")
    for name in ("noise_gt", "noise_inpaint", "t", "noise", "uniform"):
        assert torch.equal(torch.cat([getattr(draws, name) for draws in alone]), getattr(together, name))
    many = Draws.from_seeds([(0, i) for i in range(3000)], (4, 1, 1), 1000, "cpu")
    for normal in (many.noise_gt, many.noise_inpaint, many.noise):
        assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert abs(many.t.float().mean() - 499.5) < 25 and many.t.min() < 10 and many.t.max() > 989
    assert abs((many.uniform < 0.2).float().mean() - 0.2) < 0.035
    assert abs(np.corrcoef(many.noise[:, 0, 0, 0], many.noise_gt[:, 0, 0, 0])[0, 1]) < 0.1


def golden_batch(golden):
    g = golden("batch")
    return {key: g[f"in/{key}"] for key in ("GT", "inpaint_image", "inpaint_mask")} | {"ref_imgs": g["in/ref_imgs"]}


@pytest.mark.parametrize(("kind", "uniform", "dropped"), [
    ("sample", (0.1, 0.9), (True, False)),
    ("sample", (0.9, 0.1), (False, True)),
    ("batch", (0.1, 0.9), (True, True)),
    ("batch", (0.9, 0.1), (False, False)),
])  # fmt: skip
def test_guidance_drop(model, golden, kind, uniform, dropped, monkeypatch):
    """By sample, or, as published, for the batch as a whole; the loss is that of the contexts put together by hand."""
    batch = golden_batch(golden)
    draws = Draws.from_seeds([(0,), (1,)], (4, 8, 8), 1000, "cpu")
    draws = Draws(draws.noise_gt, draws.noise_inpaint, draws.t, draws.noise, torch.tensor(uniform))
    monkeypatch.setattr(model, "u_cond_drop", kind)
    loss, _ = model.batch_loss(batch, draws, 0.2)
    c, v = reference_token(model, batch["ref_imgs"]), unconditional_token(model, 2)
    context = torch.stack([v[i] if dropped[i] else c[i] for i in range(2)])
    x_start = model.get_input(batch, noise=draws.noise_gt, noise_inpaint=draws.noise_inpaint)
    torch.testing.assert_close(loss, model.p_losses(x_start, context, draws.t, draws.noise)[0])


def test_every_trainable_parameter_has_a_gradient(golden, golden_config):
    """In every step, whatever is dropped: plain DDP needs that. What is frozen would have had none."""
    trained = load_model(golden_config, GOLDEN / "model.safetensors").train()
    trained.setup("fit")
    for uniform in (0.0, 0.99):
        trained.zero_grad(set_to_none=True)
        draws = Draws.from_seeds([(0,), (1,)], (4, 8, 8), 1000, "cpu")
        draws = Draws(draws.noise_gt, draws.noise_inpaint, draws.t, draws.noise, torch.full((2,), uniform))
        trained.batch_loss(golden_batch(golden), draws, 0.2)[0].backward()
        names = [name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None]
        assert not names
    assert not trained.first_stage_model.training and not trained.cond_stage_model.transformer.training
    assert trained.model.training and trained.cond_stage_model.mapper.training


def test_the_average_of_weights():
    """d = min(decay, (1 + n) / (10 + n)), by hand."""
    layer = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    layer[0].weight.data.fill_(1.0)
    average = LitEma(layer, decay=0.3)
    assert set(dict(average.named_buffers())) == {"decay", "num_updates", "0weight"}
    expected = 1.0
    for n, value in enumerate((2.0, 5.0, -1.0, 4.0), 1):
        layer[0].weight.data.fill_(value)
        average(layer)
        expected += (1 - min(0.3, (1 + n) / (10 + n))) * (value - expected)
        assert getattr(average, "0weight").item() == pytest.approx(expected, rel=1e-6)
    with average.applied_to(layer):
        assert layer[0].weight.item() == pytest.approx(expected, rel=1e-6)
    assert layer[0].weight.item() == 4.0


# --------------------------------------------------------------------------------------- what it starts from


@pytest.fixture(scope="module")
def tiny_config():
    return load_config(ROOT / "configs/tiny.yaml")


def test_training_starts_from_what_is_given(tiny_config, tiny, tmp_path):
    """Of Stable Diffusion the UNet and the autoencoder, the new input channels zero; of Paint by Example everything."""
    given = read_checkpoint(tiny)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    prior = {name: t for name, t in given.items() if name.startswith(("model.diffusion_model.", "first_stage_model."))}
    prior[first] = prior[first][:, :4].contiguous()
    write_checkpoint(prior, tmp_path / "sd.ckpt")
    torch.manual_seed(1)  # not what the given ones were drawn with
    own = initial_model(tiny_config, str(tmp_path / "sd.ckpt")).state_dict()
    assert not own[first][:, 4:].any() and torch.equal(own[first][:, :4], given[first][:, :4])
    assert all(torch.equal(own[name], t) for name, t in prior.items() if name != first)
    assert not torch.equal(own["proj_out.weight"], given["proj_out.weight"])
    own = initial_model(tiny_config, str(tiny)).state_dict()
    assert all(torch.equal(own[name], t) for name, t in given.items())
    without = OmegaConf.merge(tiny_config, {"model": {"prior": False}})
    own = initial_model(without, str(tmp_path / "sd.ckpt")).state_dict()
    assert not torch.equal(own[first][:, :4], given[first][:, :4])
    assert torch.equal(
        own["first_stage_model.decoder.conv_in.weight"], given["first_stage_model.decoder.conv_in.weight"]
    )


def test_clip_is_taken_from_a_folder(tiny_config, tiny, tmp_path):
    """The weights are transformers' own there; a folder that is absent or lacks some is not made up for."""
    sizes = tiny_config.model.params.cond_stage_config.params.vision_config
    torch.manual_seed(1)
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes))
    clip.save_pretrained(tmp_path / "clip")
    given = {
        name: t for name, t in read_checkpoint(tiny).items() if name.startswith(("model.diff", "first_stage_model."))
    }
    write_checkpoint(given, tmp_path / "sd.ckpt")
    config = OmegaConf.merge(
        tiny_config, {"model": {"params": {"cond_stage_config": {"params": {"version": str(tmp_path / "clip")}}}}}
    )
    own = initial_model(config, str(tmp_path / "sd.ckpt"))
    pictures = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        tokens = clip.eval()(pictures).last_hidden_state
        ours = own.cond_stage_model.transformer.eval()(pictures).last_hidden_state
    torch.testing.assert_close(ours, tokens)

    weights = load_file(tmp_path / "clip/model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("layers.3.mlp.fc1.weight")))
    save_file(weights, tmp_path / "clip/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"clip: could not be fetched.*has not all weights of its config, 1 are missing"
    ):
        initial_model(config, str(tmp_path / "sd.ckpt"))
    shutil.rmtree(tmp_path / "clip")
    with pytest.raises(UserError, match=r"clip: there is no such folder"):
        initial_model(config, str(tmp_path / "sd.ckpt"))


def test_training_does_not_start_from_nothing_unasked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs/v1.yaml")
    with pytest.raises(UserError, match=r"sd-v1-4-modified-9channel\.ckpt: is not there.*modify_checkpoints\.py"):
        initial_model(config)


# ------------------------------------------------------------------------------------------ the autoencoder


@pytest.fixture(scope="module")
def first_stage_config():
    config = load_config(ROOT / "configs/mini/first_stage.yaml")
    return OmegaConf.merge(config, {"model": {"params": {"kl_weight": 0.5}}})


def test_the_autoencoders_loss(first_stage_config):
    """Absolute difference of what a given sample of the posterior decodes to, and the divergence by its formula."""
    model = initial_model(first_stage_config)
    batch = {"GT": torch.rand(2, 3, 32, 32) * 2 - 1}
    seeds = [(1, 0, 7, 0), (1, 0, 7, 1)]
    loss, absolute, squared = model.batch_loss(batch, seeds)
    mean, logvar = model.first_stage_model.quant_conv(model.first_stage_model.encoder(batch["GT"])).chunk(2, dim=1)
    noise = Draws.from_seeds(seeds, mean.shape[1:], 1, "cpu").noise_gt
    image = model.first_stage_model.decode(mean + (logvar / 2).exp() * noise)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(absolute, torch.nn.functional.l1_loss(image, batch["GT"]))
    torch.testing.assert_close(loss, absolute + 0.5 * kl.sum() / 2 / (3 * 32 * 32), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squared.mean(), torch.nn.functional.mse_loss(image, batch["GT"]))
    _, first, _ = model.batch_loss(batch, None)
    torch.testing.assert_close(first, (model.first_stage_model.reconstruct(batch["GT"]) - batch["GT"]).abs().mean())


def test_the_autoencoder_is_trained_by_main(photos, tmp_path, first_stage_config, script, monkeypatch):
    """Its checkpoint, under the names that LatentDiffusion has, is where another run starts."""
    words = ["--base", "configs/mini/first_stage.yaml", f"data.params.dataset_dir={photos}", "--no-test"]
    words += ["--max_steps", "3", "--val_check_interval", "2", "--accelerator", "cpu", "data.params.batch_size=4"]
    words += ["data.params.num_workers=0", "lightning.images.every_n_steps=2", "--log_every_n_steps", "1"]
    monkeypatch.chdir(ROOT)
    code, _, err = script("main", *words, "--project", tmp_path / "run")
    assert code == 0, err
    assert Image.open(tmp_path / "run/images/step00000002.png").size[0] == 2 * 256 + 2
    with open(tmp_path / "run/csv/version_0/metrics.csv") as file:
        (row,) = [row for row in csv.DictReader(file) if row["val/rec_loss"]]
    assert 0 < float(row["val/rec_loss"]) < 2 and 0 < float(row["val/psnr"]) < 30
    tensors = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert all(name.startswith("first_stage_model.") for name in tensors)
    again = initial_model(first_stage_config, str(tmp_path / "run/checkpoints/last.ckpt")).state_dict()
    assert again.keys() == tensors.keys() and all(torch.equal(t, tensors[name]) for name, t in again.items())
    with pytest.raises(UserError, match=r"has not this model's \d+ tensors"):
        initial_model(first_stage_config, str(GOLDEN / "model.safetensors"))


# ------------------------------------------------------------------------------------------------ devices


@pytest.mark.parametrize(("gpus", "nodes", "expected"), [
    ("0,1,2,3,4,5,6,7", 1, list(range(8))),
    ("0,", 1, [0]),
    ("0,1,...,63", 8, 8),
    ("0,1,...,7", 1, list(range(8))),
    ("0,2,...,6", 1, [0, 2, 4, 6]),
    (3, 1, [3]),
])  # fmt: skip
def test_gpus(gpus, nodes, expected):
    assert devices_of(gpus, nodes) == expected


@pytest.mark.parametrize(("gpus", "nodes"), [
    *(("0,1,...", 1), ("...,3", 1), ("a", 1), ("0,0", 1), ("-1", 1), ("0,1,2", 2), ("0,...,3", 1), ("", 1)),
    ("0,1,...,3,9", 1),
])  # fmt: skip
def test_gpus_that_cannot_be(gpus, nodes):
    with pytest.raises(UserError, match="--gpus"):
        devices_of(gpus, nodes)


def test_the_published_config_asks_for_eight_gpus(monkeypatch):
    config = load_config(ROOT / "configs/v1.yaml")
    with pytest.raises(UserError, match="no GPU that PyTorch can use"):
        trainer_options(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert trainer_options(config) == {
        "max_epochs": 40,
        "num_nodes": 1,
        "accelerator": "gpu",
        "devices": list(range(8)),
    }
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match=r"this machine has 4 GPUs.*--num_nodes"):
        trainer_options(config)


@pytest.mark.parametrize(("has", "expected"), [(torch.bfloat16, "bf16-mixed"), (torch.float32, "32-true")])
def test_no_half_precision_where_the_cpu_has_none(has, expected, monkeypatch):
    config = load_config(ROOT / "configs/mini/first_stage.yaml")
    config["lightning"]["trainer"]["accelerator"] = "cpu"
    monkeypatch.setattr("ldm.training.run.preferred_half_dtype", lambda device: has)
    assert trainer_options(config)["precision"] == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config["lightning"]["trainer"]["accelerator"] = "gpu"
    assert trainer_options(config)["precision"] == "bf16-mixed"


# ---------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """26 pictures to train on and 4 to validate with: 6 batches of 4 an epoch."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 26), ("validation", 4)):
        (root / split).mkdir()
        for i in range(count):
            small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
            small.resize((84, 72), Image.Resampling.BICUBIC).save(root / split / f"{i}.png")
        (root / "bbox").mkdir(exist_ok=True)
        rows = {"path": [f"{split}/{i}.png" for i in range(count)], "boxes": [[[20.0, 16.0, 60.0, 50.0]]] * count}
        pl.DataFrame(rows).write_parquet(root / f"bbox/{split}.parquet")
    return root


def command(photos, logdir, *words) -> list[str]:
    """main.py at toy size: a smaller UNet than tiny's, 64 x 64 pixels, every step logged, last.ckpt every 2 steps."""
    splits = ("train", "validation", "test")
    return [
        *(sys.executable, "main.py", "--base", "configs/tiny.yaml", "--logdir", str(logdir), "--no-test"),
        f"data.params.dataset_dir={photos}",
        *(f"data.params.{split}.params.image_size=64" for split in splits),
        *(
            "data.params.num_workers=0",
            "model.params.use_ema=true",
            "model.params.unet_config.params.channel_mult=[1,1]",
        ),
        *("lightning.checkpoint.every_n_steps=2", "lightning.images.steps=1", "lightning.images.count=1"),
        *("--max_epochs", "-1", "--max_steps", "14", "--log_every_n_steps", "1", "--enable_progress_bar", "false"),
        *("--enable_model_summary", "false"),
        *map(str, words),
    ]


PIPES = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def run(words, **more) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, **more)


def losses(folder) -> dict[int, float]:
    """Step -> training loss, of all starts of a run; a later start's come last."""
    found = {}
    for path in sorted(Path(folder).glob("csv/version_*/metrics.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                if row.get("train/loss_simple"):
                    found[int(row["step"])] = float(row["train/loss_simple"])
    return found


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run that nothing disturbs: its folder."""
    logs = tmp_path_factory.mktemp("whole")
    done = run(command(photos, logs))
    assert done.returncode == 0, done.stderr
    (folder,) = logs.iterdir()
    assert list(losses(folder)) == list(range(14))
    return folder


def wait_for_step(folder, process, step):
    """Until the log has this step; then it is in the next one."""
    start = time.time()
    while max(losses(folder), default=-1) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.time() - start < 300
        time.sleep(0.02)


def test_a_run_leaves_what_it_promises(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "csv",
        "images",
        "tensorboard",
    ]
    assert Image.open(whole / "images/step00000001.png").size == (5 * 258 - 2, 256)
    assert list(whole.glob("tensorboard/events*"))
    names = sorted(path.name for path in whole.glob("checkpoints/*"))
    assert names[0] == "last.ckpt" and len(names) == 3  # and the best of two validations
    saved = OmegaConf.load(whole / "config.yaml")
    assert saved.model.params.use_ema and saved.lightning.seed == 23 and saved.lightning.trainer.max_steps == 14
    with open(whole / "csv/version_0/metrics.csv") as file:
        columns = set(csv.DictReader(file).fieldnames)
    assert {"train/loss_simple", "val/loss_simple", "val/loss_simple_ema", "samples/s", "lr"} <= columns


def test_its_checkpoint_edits(whole, example):
    from ldm.pipeline import PaintByExample

    pictures = []
    for ema in (False, True):
        tensors = read_checkpoint(whole / "checkpoints/last.ckpt", ema=ema)
        write_checkpoint(tensors, whole / "small.safetensors")
        edit = PaintByExample.load(whole / "config.yaml", whole / "small.safetensors", device="cpu")
        pictures.append(np.asarray(edit(**example, steps=2, height=64, width=64, progress=False)))
    (whole / "small.safetensors").unlink()
    assert pictures[0].shape == (400, 600, 3) and (pictures[0] != pictures[1]).any()


def test_a_killed_run_goes_on_exactly(whole, photos, tmp_path):
    """kill -9 in the first epoch, SIGTERM in the second: losses and all that is kept equal the undisturbed run's."""
    process = subprocess.Popen(command(photos, tmp_path), **PIPES)
    while not (folders := list(tmp_path.iterdir())):
        time.sleep(0.1)
    wait_for_step(folders[0], process, 4)
    process.kill()
    process.communicate()
    resume = [sys.executable, "main.py", "-r", str(folders[0]), "data.params.num_workers=2"]
    process = subprocess.Popen(resume, **PIPES)
    wait_for_step(folders[0], process, 8)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert f"to go on: python main.py -r {folders[0]}" in out
    stopped = max(losses(folders[0])) + 1
    assert 9 <= stopped < 14 and f"stopped after step {stopped}" in out
    assert torch.load(folders[0] / "checkpoints/last.ckpt", weights_only=True)["global_step"] == stopped
    done = run([*resume, "--no-test"])
    assert done.returncode == 0, done.stderr
    assert losses(folders[0]) == losses(whole)
    kept = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole, folders[0])]
    assert all(torch.equal(t, kept[1]["state_dict"][name]) for name, t in kept[0]["state_dict"].items())
    assert any(name.startswith("model_ema.") for name in kept[0]["state_dict"])
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in kept]
    assert all(torch.equal(t, moments[1][i][key]) for i, state in moments[0].items() for key, t in state.items())
    assert kept[0]["lr_schedulers"] == kept[1]["lr_schedulers"]


@pytest.mark.slow
def test_a_run_that_reached_its_last_step_goes_on_exactly(whole, photos, tmp_path):
    """It stopped at step 9, in the middle of an epoch, and is given more."""
    assert run(command(photos, tmp_path, "--max_steps", 9)).returncode == 0
    (folder,) = tmp_path.iterdir()
    done = run([sys.executable, "main.py", "-r", str(folder), "--no-test", "--max_steps", "14"])
    assert done.returncode == 0, done.stderr
    assert losses(folder) == losses(whole)


@pytest.mark.slow
def test_accumulated_gradients_are_not_lost(photos, tmp_path):
    """Two batches a step. Ctrl-C comes at any time; going on gives what an undisturbed run gives, weight for weight."""
    words = ("data.params.batch_size=2", "--accumulate_grad_batches", 2, "--max_steps", 8)
    folders = []
    for name, code in (("whole", 0), ("stopped", 143)):
        process = subprocess.Popen(command(photos, tmp_path / name, *words), **PIPES)
        while not (tmp_path / name).exists() or not list((tmp_path / name).iterdir()):
            time.sleep(0.1)
        folders += (tmp_path / name).iterdir()
        if name == "stopped":
            wait_for_step(folders[-1], process, 3)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == code, err
    assert run([sys.executable, "main.py", "-r", str(folders[1]), "--no-test"]).returncode == 0
    kept = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in folders]
    assert all(torch.equal(t, kept[1][name]) for name, t in kept[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["leader", "both"])
def test_two_processes_stop_together(whom, photos, tmp_path):
    words = command(
        photos, tmp_path, "data.params.batch_size=2", "--devices", 2, "--strategy", "ddp", "--max_steps", 2000
    )
    process = subprocess.Popen(words, **PIPES, start_new_session=True)
    while not list(tmp_path.iterdir()):
        time.sleep(0.1)
    (folder,) = tmp_path.iterdir()
    wait_for_step(folder, process, 2)
    if whom == "leader":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    stopped = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert stopped == max(losses(folder)) + 1 and f"stopped after step {stopped}" in out
    done = run([sys.executable, "main.py", "-r", str(folder), "--no-test", "--max_steps", str(stopped + 2)])
    assert done.returncode == 0 and max(losses(folder)) == stopped + 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--limit_train_batches", 3), ("--max_time", "{seconds: 1}")])
def test_epochs_cut_short_go_on_exactly(words, whole, photos, tmp_path):
    """Where an epoch has 3 batches, or the time is up somewhere."""
    limited = words[0] == "--limit_train_batches"
    reference = losses(whole)
    if limited:
        assert run(command(photos, tmp_path / "whole", *words, "--max_steps", 9)).returncode == 0
        reference = losses(next((tmp_path / "whole").iterdir()))
    done = run(command(photos, tmp_path / "cut", *words, "--max_steps", 5 if limited else 14))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cut").iterdir()
    more = ("--max_steps", "9") if limited else ("--max_time", "null", "--max_steps", "14")
    done = run([sys.executable, "main.py", "-r", str(folder), "--no-test", *more])
    assert done.returncode == 0, done.stderr
    assert losses(folder) == reference


def test_another_learning_rate_for_a_run_that_goes_on(whole, tmp_path):
    """And another schedule of it: at the last step of a cycle it is at its least."""
    shutil.copytree(whole, tmp_path / "run")
    schedule = "model.params.scheduler_config.params"
    words = ("-r", tmp_path / "run", "--no-test", "--max_steps", 15, "model.base_learning_rate=1e-9")
    words += (f"{schedule}.cycle_lengths=[14]", f"{schedule}.f_min=[0.5]")
    assert run([sys.executable, "main.py", *map(str, words)]).returncode == 0
    with open(tmp_path / "run/csv/version_1/metrics.csv") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row.get("lr")]
    assert rates[-1] == pytest.approx(0.5e-9)


def test_what_a_killed_run_left_goes(tmp_path):
    from ldm.training.checkpoints import Last

    for name in ("last.ckpt", "step00000004-loss1.ckpt", "step00000009-loss0.5.ckpt", ".partial-last.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / ".partial-abc").mkdir()  # where an adapter was being written
    (tmp_path / ".partial-abc/lora.safetensors").touch()
    last = Last(tmp_path, 5)
    last.step = 4
    last._tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step00000004-loss1.ckpt"]


class OneBadBatch(lightning.LightningModule):
    """A weight w with the loss w^2; that of the third batch is not a number."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.w.item())
        return (self.w**2).sum() * (float("nan") if batch_idx == 2 else 1.0)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_a_skipped_step_leaves_the_weights_alone():
    from ldm.training.callbacks import FiniteLoss

    module = OneBadBatch()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[FiniteLoss(True, None)],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(6, 1)))
    assert module.seen[2] == module.seen[3] and len(set(module.seen)) == 5
    assert np.isfinite(module.seen).all() and module.seen[5] < module.seen[3] < module.seen[1]


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((), marks=pytest.mark.slow, id="hand"),
        pytest.param(("-m", "torch.distributed.run", "--nproc_per_node", "2"), id="torchrun"),
    ],
)
def test_two_processes_learn_what_one_does(launcher, whole, photos, tmp_path):
    """Plain DDP, batch 2 in each of two processes, against batch 4 in one: the same first losses."""
    words = command(photos, tmp_path, "data.params.batch_size=2", "--devices", 2, "--strategy", "ddp", "--max_steps", 5)
    done = run([words[0], *launcher, *words[1:]])
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    divided, alone = losses(folder), losses(whole)
    averages = read_checkpoint(folder / "checkpoints/last.ckpt", ema=True)
    assert not torch.equal(
        averages["model.diffusion_model.out.2.weight"],
        read_checkpoint(folder / "checkpoints/last.ckpt")["model.diffusion_model.out.2.weight"],
    )
    assert list(divided) == list(range(5))
    for step, loss in divided.items():
        assert loss == pytest.approx(alone[step], rel=1e-5)


def test_a_full_disk_leaves_the_checkpoint_before(whole, tmp_path):
    """Files may not grow beyond a megabyte: the run ends with a sentence, and last.ckpt is what it was."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = folder / "checkpoints/last.ckpt"
    before = last.read_bytes()
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))}
    done = run([sys.executable, "main.py", "-r", str(folder), "--max_steps", "18"], **limit)
    assert done.returncode == 2 and "last.ckpt: cannot be written" in done.stderr
    assert "the one before is untouched" in done.stderr.splitlines()[-1]
    assert last.read_bytes() == before and not list(last.parent.glob(".partial*"))


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_loss_that_is_not_finite(photos, tmp_path, what):
    """With a learning rate without bounds it comes in the second step."""
    words = (
        "model.base_learning_rate=1e30",
        "model.params.scheduler_config=null",
        "--max_steps",
        3,
        "--nonfinite",
        what,
    )
    done = run(command(photos, tmp_path, *words, "lightning.checkpoint.every_n_steps=1"))
    (folder,) = tmp_path.iterdir()
    if what == "skip":
        assert done.returncode == 0 and "the loss is not finite; step skipped" in done.stderr
    else:
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and "step 1: the loss is not finite" in last
        assert f"the last checkpoint is {folder}/checkpoints/last.ckpt" in last
        named = {word.strip(" ;,") for word in last.split() if word.strip(" ;,").endswith(".png")}
        assert len(named) == 4 and all(Path(name).exists() for name in named)


# ----------------------------------------------------------------------------------------- what users get wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a config, --base"),
        (("--base", "nowhere.yaml"), "nowhere.yaml"),
        (("--no-test", "model.params.timesteps", "--base", "configs/tiny.yaml"), "is no flag and no key=value"),
        (
            ("--base", "configs/tiny.yaml", "data.params.train.params.dataset_dir=nowhere"),
            "nowhere: has no boxes for train",
        ),
        (("--base", "configs/tiny.yaml", "--gpus", "0,1"), "no GPU that PyTorch can use"),
        (("--base", "configs/tiny.yaml", "--precision", "7"), "lightning.trainer"),
        (("--base", "configs/tiny.yaml", "max_steps=3"), "max_steps=3: changes none of model, data, lightning"),
        (("-r", "nowhere"), "there is no nowhere"),
        (("--base", "configs/tiny.yaml", "--precision", "32", "model.params.monitor=val/nope"), "monitor is val/nope"),
        (("--base", "configs/tiny.yaml", "--gpus", "0", "--devices", "2"), "does not go with --devices"),
        (("--base", "configs/tiny.yaml", "--num_nodes", "2"), "MASTER_ADDR and MASTER_PORT"),
        (("--base", "configs/tiny.yaml", "--precision", "32", "--val_check_interval", "1000"), "val_check_interval"),
        (("--base", "configs/v1.yaml", "--accelerator", "cpu"), "has no boxes for train"),
    ],
)
def test_mistakes(words, message, photos, tmp_path, script, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = list(words)
    if "--precision" in words or "--gpus" in words:
        words.append(f"data.params.dataset_dir={photos}")
    code, _, err = script("main", *words, *(("--logdir", tmp_path) if "-r" not in words else ()))
    assert code == 2 and message in err.splitlines()[-1], err
    assert "Traceback" not in err


def test_a_folder_that_holds_a_run_is_not_overwritten(whole, photos, tmp_path, script):
    code, _, err = script("main", *command(photos, tmp_path, "--project", whole)[2:])
    assert code == 2 and "holds a run already" in err


def test_help_is_readable(script):
    code, out, _ = script("main", "--help")
    assert code == 0 and len(out.splitlines()) < 75
    for flag in (
        "--base",
        "--resume",
        "--gpus",
        "--devices",
        "--num_nodes",
        "--precision",
        "--strategy",
        "--max_steps",
    ):
        assert flag in out
    assert "--detect_anomaly" not in out


def test_compiling_changes_no_name_of_a_weight(golden_config):
    """What is compiled is the networks that a step runs; what has none says so."""
    from ldm.checkpoint.load import empty_model
    from ldm.models.base import TrainableModel

    model = empty_model(golden_config)
    names = list(model.state_dict())
    model.compile_networks()
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["model.diffusion_model", "first_stage_model.encoder", "cond_stage_model.transformer"]
    assert list(model.state_dict()) == names
    with pytest.raises(UserError, match="--compile: there is nothing to compile"):
        TrainableModel().compile_networks()
