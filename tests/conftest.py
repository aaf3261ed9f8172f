"""What the tests share: the golden model, a tiny pipeline, scripts run in this process."""

from __future__ import annotations

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
# Random examples: a few that are always the same, or with --hypothesis-profile=thorough many that never are.
settings.register_profile("suite", max_examples=12, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "thorough", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("suite")
INTEGRATION = {"script", "demo", "edit", "tiny"}  # fixtures of tests that run commands, servers or whole edits


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is one of slow, integration, golden, unit: the first two are marked where they are not recognised by
    their fixtures, golden ones compare with tests/golden, unit are all others."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("slow") or item.get_closest_marker("integration"):
            continue
        kind = (
            "integration" if fixtures & INTEGRATION else "golden" if fixtures & {"golden", "golden_config"} else "unit"
        )
        item.add_marker(kind)


class Golden:
    """`golden("unet")["in/x"]`: arrays of one golden file, floats and ints as tensors."""

    def __init__(self, name: str):
        self.arrays = np.load(GOLDEN / f"{name}.npz")

    def __getitem__(self, key: str):
        array = self.arrays[key]
        return array if array.dtype.kind == "U" else torch.from_numpy(array)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays


@pytest.fixture(scope="session")
def golden():
    return Golden


@pytest.fixture(scope="session")
def golden_config() -> dict:
    return {"model": json.loads((GOLDEN / "config.json").read_text())["model"]}


@pytest.fixture(scope="session")
def model(golden_config):
    """The golden toy model. Shared: tests leave its weights, dtype and mode as they are."""
    from ldm.checkpoint import load_model

    return load_model(golden_config, GOLDEN / "model.safetensors")


@pytest.fixture(scope="session")
def random_unet64():
    """A UNet in float64, no weight of it zero, with attention at two of three resolutions."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    torch.manual_seed(3)
    unet = UNetModel(
        in_channels=9,
        out_channels=4,
        model_channels=32,
        num_res_blocks=2,
        attention_resolutions=[1, 2],
        channel_mult=[1, 2, 2],
        num_heads=4,
        context_dim=40,
        transformer_depth=2,
    )
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return unet.double().eval()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def script(monkeypatch, capfd):
    """`script("inference", "--seed", 1)` runs scripts/inference.py, `script("main", ...)` main.py, in this process ->
    (exit code, stdout, stderr). Signal handlers and the number of threads, which they set, are put back."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = torch.get_num_threads()
    monkeypatch.setattr("ldm.fast.memory.keep_memory", lambda: None)  # it cannot be undone

    def run(name: str, *args: object) -> tuple[int, str, str]:
        path = ROOT / "main.py" if name == "main" else ROOT / "scripts" / f"{name}.py"
        monkeypatch.setattr("sys.argv", [path.name, *map(str, args)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            os.environ.pop("PAINT_BY_EXAMPLE_RUN", None)  # it would be the folder of all later runs
        out, err = capfd.readouterr()
        return code, out, err

    yield run
    torch.set_num_threads(threads)
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint of random weights for configs/tiny.yaml."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    subprocess.run(
        [sys.executable, "scripts/random_checkpoint.py", "configs/tiny.yaml", str(path)], cwd=ROOT, check=True
    )
    return path


@pytest.fixture(scope="session")
def edit(tiny):
    """The pipeline with that checkpoint, on the CPU."""
    from ldm.pipeline import PaintByExample

    return PaintByExample.load(ROOT / "configs/tiny.yaml", tiny, device="cpu")


@pytest.fixture(scope="session")
def example() -> dict[str, Image.Image]:
    """A photo (600 x 400) with its mask and reference."""
    files = {"image": "image/example_2.jpg", "mask": "mask/example_2.png", "reference": "reference/example_2.jpg"}
    return {name: Image.open(ROOT / "examples" / file) for name, file in files.items()}


@pytest.fixture
def edit_example(script):
    """`edit_example(outdir, checkpoint, "--scale", 1)` runs scripts/inference.py on example 2 with configs/tiny.yaml,
    two steps -> (exit code, stdout, stderr)."""

    def run(outdir: Path, checkpoint: Path, *flags: object) -> tuple[int, str, str]:
        given = {
            "image_path": ROOT / "examples/image/example_2.jpg",
            "mask_path": ROOT / "examples/mask/example_2.png",
            "reference_path": ROOT / "examples/reference/example_2.jpg",
            "config": ROOT / "configs/tiny.yaml",
            "ckpt": checkpoint,
            "outdir": outdir,
            "ddim_steps": 2,
            "H": 64,
            "W": 96,
            "device": "cpu",
        }
        return script("inference", *(x for name, value in given.items() for x in (f"--{name}", value)), *flags)

    return run


def edited_pixels(outdir: Path) -> np.ndarray:
    """What `edit_example` painted: (H,W,3), int64."""
    return np.asarray(Image.open(outdir / "results/example_2_321.png")).astype(int)


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory) -> Path:
    """Eight pictures with a box each, prepared by scripts/read_bbox.py: seven to train on and one held out."""
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    with open(folder / "boxes.csv", "w", newline="") as file:
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (128, 160, 3), np.uint8)).save(folder / f"photos/{i}.png")
            csv.writer(file).writerow([f"{i}.png", 30, 20, 90, 100])
    command = "scripts/read_bbox.py --format csv --images {0}/photos --annotations {0}/boxes.csv --dataset_dir {0}/data"
    subprocess.run([sys.executable, *command.format(folder).split()], cwd=ROOT, check=True)
    return folder / "data"


def training_batch(batch: int = 2) -> dict[str, torch.Tensor]:
    """Random pictures of 128 x 128 with a square to paint, as the data loader gives them."""
    image = torch.rand(batch, 3, 128, 128) * 2 - 1
    mask = torch.ones(batch, 1, 128, 128)
    mask[..., 32:96, 32:96] = 0
    return {
        "GT": image,
        "inpaint_image": image * mask,
        "inpaint_mask": mask,
        "ref_imgs": torch.randn(batch, 3, 224, 224),
    }


def take_steps(model, optimizer, batch, draws, count: int) -> list[float]:
    """Steps of training on one batch, with the reference in every sample -> the losses before each."""
    losses = []
    for _ in range(count):
        loss, _ = model.batch_loss(batch, draws, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def empty_memory() -> None:
    """Remove what other tests have left under memory://."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
