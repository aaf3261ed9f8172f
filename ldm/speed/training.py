"""The cost of a training step: measured seconds of its parts, and the estimated memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ldm.checkpoint.load import empty_model
from ldm.data.open_images import OpenImageDataset
from ldm.models.detail.training import DetailTraining
from ldm.models.diffusion.conditioning import reference_token
from ldm.models.diffusion.ddpm import Condition, LatentDiffusion
from ldm.speed.compare import matmul_rate, synchronize
from ldm.util import instantiate_from_config

PRECISIONS = {"32": None, "bf16": torch.bfloat16}
WARM_UP = 2  # steps that are not counted
DROP = 0.2  # share of samples with the learned vector instead of the reference
LOADER_BATCHES, UNTIMED_BATCHES = 12, 4  # of loader_rate; the workers start during the untimed ones
PICTURES = 8


@dataclass(frozen=True)
class TrainingStep:
    """The settings of a measurement. precision: a key of PRECISIONS; workers: of the data loader, 0 to leave it out."""

    batch_size: int
    steps: int
    precision: str
    compiled: bool
    checkpointing: bool
    workers: int


@dataclass(frozen=True)
class TrainingSpeed:
    """parts: name -> median seconds, none for a detail path; step: seconds of a complete step; data: seconds to make
    a batch in one process; loader: samples per second with workers, or None; flops: of a sample, without those of a
    detail path; peak_rate: operations per second of a matrix product; peak_memory: bytes."""

    parts: dict[str, float]
    step: float
    data: float
    loader: float | None
    flops: int
    peak_rate: float
    peak_memory: int


class Clock:
    """`with clock("part"):` adds the seconds of a part to its list, including the device's work."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds.setdefault(part, []).append(time.perf_counter() - start)


def measure_training(config: DictConfig, setup: TrainingStep, device: torch.device) -> TrainingSpeed:
    """Trains on random pictures, from random weights."""
    dtype = PRECISIONS[setup.precision]
    model, optimizer = _prepare_model(config["model"], setup, device)
    size = image_size(config)
    torch.backends.cudnn.benchmark = True  # as in training
    batch, data, loader = _measure_data(setup, size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    parts = {}
    if not isinstance(model, DetailTraining):  # which learns nothing from the token alone
        parts = _time_parts(model, optimizer, batch, setup, autocast, device)
    step = _time_steps(model, optimizer, batch, setup, autocast, device)
    flops, rate = sample_flops(model, size), matmul_rate(device, dtype or torch.float32)
    return TrainingSpeed(parts, step, data, loader, flops, rate, peak_memory(device))


def image_size(config: DictConfig) -> int:
    """Pixels of a training picture's side."""
    return config["data"]["params"]["train"]["params"]["image_size"]


def _with_checkpointing(section: DictConfig, checkpointing: bool) -> DictConfig:
    unet = {"params": {"use_checkpoint": checkpointing}}
    return OmegaConf.merge(section, {"params": {"unet_config": unet}})


def _prepare_model(
    section: DictConfig, setup: TrainingStep, device: torch.device
) -> tuple[LatentDiffusion, torch.optim.Optimizer]:
    torch.manual_seed(0)
    with device:
        model = instantiate_from_config(_with_checkpointing(section, setup.checkpointing), nn.Module)
    model = model.to(device).train()
    model.learning_rate = 1e-5
    model.setup("fit")
    model.on_fit_start()
    if setup.compiled:
        model.compile_networks()
    configured = model.configure_optimizers()
    return model, configured["optimizer"] if isinstance(configured, dict) else configured


def _measure_data(
    setup: TrainingStep, size: int, device: torch.device
) -> tuple[dict[str, Tensor], float, float | None]:
    """A batch on the device, the seconds to make it in one process, and samples per second with workers."""
    with tempfile.TemporaryDirectory() as folder:
        _write_pictures(Path(folder), PICTURES)
        dataset = OpenImageDataset("train", folder, image_size=size)
        start = time.perf_counter()
        batch = default_collate([dataset[0, i % PICTURES] for i in range(setup.batch_size)])
        seconds = time.perf_counter() - start
        loader = loader_rate(dataset, setup.batch_size, setup.workers, device) if setup.workers else None
    return {name: tensor.to(device) for name, tensor in batch.items()}, seconds, loader


def _write_pictures(folder: Path, count: int) -> None:
    """Random JPEGs of 1024 x 768 with a box each, in the published layout."""
    rng = np.random.default_rng(0)
    images, boxes = folder / "images/train", folder / "bbox/train"
    images.mkdir(parents=True)
    boxes.mkdir(parents=True)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        small.resize((1024, 768), Image.Resampling.BICUBIC).save(images / f"{i}.jpg", quality=90)
        (boxes / f"{i}.txt").write_text("300 200 700 600\n")


def _time_parts(
    model: LatentDiffusion,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    setup: TrainingStep,
    autocast: Callable[[], torch.autocast],
    device: torch.device,
) -> dict[str, float]:
    clock = Clock(device)
    for step in tqdm(range(setup.steps + WARM_UP), desc="parts of a step", unit="step"):
        draws = model.make_draws(batch, [(step, i) for i in range(setup.batch_size)])
        with autocast():
            with clock("VAE encodes, both at once"):
                x_start = model.get_input(batch, noise=draws.noise_gt, noise_inpaint=draws.noise_inpaint)
            with clock("CLIP and mapper"):
                context = reference_token(model, batch["ref_imgs"])
            with clock("UNet forward"):
                loss, _ = model.p_losses(x_start, context, draws.t, draws.noise)
        with clock("UNet backward"):
            loss.backward()
        with clock("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {part: statistics.median(seconds[WARM_UP:]) for part, seconds in clock.seconds.items()}


def _time_steps(
    model: LatentDiffusion,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    setup: TrainingStep,
    autocast: Callable[[], torch.autocast],
    device: torch.device,
) -> float:
    clock = Clock(device)
    with clock("steps"):
        for step in tqdm(range(setup.steps), desc="complete steps", unit="step"):
            draws = model.make_draws(batch, [(step, i) for i in range(setup.batch_size)])
            with autocast():
                loss, _ = model.batch_loss(batch, draws, DROP)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return clock.seconds["steps"][0] / setup.steps


def loader_rate(dataset: OpenImageDataset, batch_size: int, workers: int, device: torch.device) -> float:
    """Samples per second that reach the device while nothing trains."""
    count = LOADER_BATCHES * batch_size
    sampler = [(0, i % len(dataset)) for i in range(count)]
    pinned = device.type == "cuda"
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, pin_memory=pinned)
    arrivals = []
    for batch in tqdm(loader, desc="loader", unit="batch"):
        for tensor in batch.values():
            tensor.to(device, non_blocking=True)
        arrivals.append(time.perf_counter())
    seconds = arrivals[-1] - arrivals[UNTIMED_BATCHES - 1]
    return batch_size * (LOADER_BATCHES - UNTIMED_BATCHES) / seconds


def peak_memory(device: torch.device) -> int:
    """Bytes, of the device or, on the CPU, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sample_flops(model: LatentDiffusion, size: int) -> int:
    """Operations to train on one sample: three times the UNet's forward pass, the autoencoder's twice, CLIP's once."""
    device = next(model.parameters()).device
    side = size // model.first_stage_model.factor
    latent = torch.zeros(1, model.channels + 5, side, side, device=device)
    clip_size = model.cond_stage_model.image_size

    def count(function: Callable[..., object], *inputs: Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function(*inputs)
        return counter.get_total_flops()

    context = torch.zeros(1, 1, model.model.diffusion_model.context_dim, device=device)
    unet = count(model.apply_model, latent, torch.zeros(1, device=device, dtype=torch.long), context)
    vae = count(model.encode_first_stage, torch.zeros(1, 3, size, size, device=device))
    clip = count(model.get_learned_conditioning, torch.zeros(1, 3, clip_size, clip_size, device=device))
    return 3 * unet + 2 * vae + clip


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes. static: weights, gradients and AdamW's two moments; activations: what the UNet's backward pass needs."""

    static: int
    activations: int


def estimate_memory(
    config: DictConfig, batch_size: int, dtype: torch.dtype | None, checkpointing: bool
) -> TrainingMemory:
    """Counts a training step's memory with fake tensors, which allocate nothing. dtype: of autocast, or None.

    Leaves out what a checkpointed block recomputes, one block at a time."""
    model = empty_model({"model": _with_checkpointing(config["model"], checkpointing)})
    model.setup("fit")
    size = image_size(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        static = sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())
        side = size // model.first_stage_model.factor
        x = torch.zeros(batch_size, model.channels + 5, side, side)
        context = torch.zeros(batch_size, 1, model.model.diffusion_model.context_dim, requires_grad=True)
        t = torch.zeros(batch_size, dtype=torch.long)
        saved: dict[int, int] = {}  # storage -> bytes
        alive = []

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved[storage._cdata] = storage.nbytes()
                alive.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            model.apply_model(x, t, _with_details(model, context, side))
        return TrainingMemory(static, sum(saved.values()))


def _with_details(model: LatentDiffusion, context: Tensor, side: int) -> Condition:
    """The context; of a model that trains a detail path, with what the path adds."""
    if not isinstance(model, DetailTraining):
        return context
    encoder, count = model.cond_stage_model, len(context)
    encoded = {
        "ref_features": torch.zeros(count, 1, encoder.width),
        "ref_detail": model.detail.encode(model, torch.zeros(count, 3, encoder.image_size, encoder.image_size)),
        "mask": torch.zeros(count, 1, side, side),
    }
    return model.condition(encoded, torch.zeros(count, 1, 1, dtype=torch.bool))
