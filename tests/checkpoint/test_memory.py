"""A loaded model uses the memory of its file."""

import subprocess
import sys

import pytest
import torch

from ldm.checkpoint.load import empty_model, write_checkpoint
from ldm.checkpoint.locate import DEFAULT_CONFIG
from ldm.models.diffusion.schedule import BUFFERS
from ldm.util import load_config
from tests.conftest import ROOT

pytestmark = pytest.mark.integration

MEMORY = """
import sys
from omegaconf import OmegaConf
from ldm.checkpoint import load_model

def held(kind):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(kind))

config = OmegaConf.load("configs/v1.yaml")
width = int(sys.argv[2])
config.model.params.unet_config.params.model_channels = width
config.model.params.first_stage_config.params.ddconfig.ch = max(32, width * 2 // 5)
before = held("RssAnon")
model = load_model(config, sys.argv[1])
size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
assert all(bool(p.detach().sum().isfinite()) for p in model.parameters())  # every page is read
print((held("RssAnon") - before) / size, held("VmHWM") / size)
"""


def memory_of(path, width):
    """Loads v1.yaml's model with a UNet of `width` channels -> its own memory and the peak, as shares of its size."""
    command = [sys.executable, "-c", MEMORY, str(path), str(width)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    own, peak = map(float, done.stdout.split()[-2:])
    print(f"{path.name}: {own:.2f} of its own, peak {peak:.2f} times the model's size")
    return own, peak


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
def test_a_loaded_model_uses_its_files_memory(tmp_path, name):
    """The full-size model's CLIP tower with a narrow UNet and autoencoder, 1.5 GB of zeros."""
    config = load_config(DEFAULT_CONFIG)
    config.model.params.unet_config.params.model_channels = 64
    config.model.params.first_stage_config.params.ddconfig.ch = 32  # GroupNorm's 32 groups
    tensors = {name: torch.zeros(t.shape) for name, t in empty_model(config).state_dict().items()}
    tensors = {name: t for name, t in tensors.items() if name not in BUFFERS}
    write_checkpoint(tensors, tmp_path / name)
    own, _ = memory_of(tmp_path / name, 64)
    (tmp_path / name).unlink()
    assert own < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full.ckpt", "full.safetensors"])
def test_the_full_size_model_loads_in_little_more_than_its_size(tmp_path, name):
    """5.2 GB: peak memory of the process, Python and torch included, below 1.4 times the model with every page read."""
    path = tmp_path / name
    subprocess.run([sys.executable, "scripts/random_checkpoint.py", "configs/v1.yaml", path], cwd=ROOT, check=True)
    own, peak = memory_of(path, 320)
    path.unlink()
    assert own < 0.2 and peak < 1.4
