"""What a training step costs, and what fits into memory.

    python scripts/benchmark_training.py --config configs/tiny.yaml          # measured: seconds of each part, samples/s
    python scripts/benchmark_training.py --config configs/v1.yaml --memory   # estimated: GB by batch size and switches

Measured on the device there is, with made-up pictures and random weights. The estimate needs no device: it counts the
weights, gradients, optimizer states and the tensors kept for the backward pass, without allocating any of them."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ldm.checkpoint.load import empty_model
from ldm.cli.command import command
from ldm.data.open_images import OpenImageDataset
from ldm.editing.checks import pick_device
from ldm.models.diffusion.conditioning import reference_token
from ldm.speed.contestants import peak_flops
from ldm.util import UserError, instantiate_from_config, load_config

PRECISIONS = {"32": None, "bf16": torch.bfloat16}
WARM_UP = 2  # steps that are not counted


def made_up_pictures(folder: Path, count: int) -> None:
    """JPEGs of 1024 x 768 with a box each, in the published layout."""
    rng = np.random.default_rng(0)
    images, boxes = folder / "images/train", folder / "bbox/train"
    images.mkdir(parents=True)
    boxes.mkdir(parents=True)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        small.resize((1024, 768), Image.Resampling.BICUBIC).save(images / f"{i}.jpg", quality=90)
        (boxes / f"{i}.txt").write_text("300 200 700 600\n")


class Clock:
    """`with clock("part"):` adds up the seconds of each part, the device's work included."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, part: str) -> "Clock":
        self.part = part
        return self

    def __enter__(self) -> None:
        self.start = self.now()

    def __exit__(self, *_: object) -> None:
        self.seconds.setdefault(self.part, []).append(self.now() - self.start)


def measure(config: DictConfig, batch_size: int, steps: int, device: torch.device, opt: argparse.Namespace) -> None:
    dtype = PRECISIONS[opt.precision]
    size = config["data"]["params"]["train"]["params"]["image_size"]
    unet = {"use_checkpoint": opt.checkpointing}
    section = OmegaConf.merge(config["model"], {"params": {"unet_config": {"params": unet}}})
    torch.manual_seed(0)
    with device:
        model = instantiate_from_config(section, torch.nn.Module)
    model = model.to(device).train()
    model.learning_rate = 1e-5
    model.setup("fit")
    model.on_fit_start()
    if opt.compile:
        model.compile_networks()
    configured = model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    clock = Clock(device)
    torch.backends.cudnn.benchmark = True  # as main.py has it

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    with tempfile.TemporaryDirectory() as folder:
        made_up_pictures(Path(folder), 8)
        dataset = OpenImageDataset("train", folder, image_size=size)
        keys = [(0, i % 8) for i in range(batch_size)]
        with clock("one batch of data, by one process"):
            batch = default_collate([dataset[key] for key in keys])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        if opt.workers:
            loading = rate_of_loader(dataset, batch_size, opt.workers, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in tqdm(range(steps + WARM_UP), desc="parts of a step", unit="step"):
        draws = model.make_draws(batch, [(step, i) for i in range(batch_size)])
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
    data = clock.seconds.pop("one batch of data, by one process")[0]
    parts = {part: statistics.median(seconds[WARM_UP:]) for part, seconds in clock.seconds.items()}
    start = clock.now()
    for step in tqdm(range(steps), desc="whole steps", unit="step"):
        draws = model.make_draws(batch, [(step, i) for i in range(batch_size)])
        with autocast():
            loss, _ = model.batch_loss(batch, draws, 0.2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    whole = (clock.now() - start) / steps
    for part, seconds in parts.items():
        print(f"{part:26s} {seconds * 1e3:10.1f} ms {seconds / sum(parts.values()):6.1%}")
    flops = model_flops(model, size) * batch_size
    peak = peak_flops(device, dtype or torch.float32)
    print(f"{'a whole step':26s} {whole * 1e3:10.1f} ms, {batch_size / whole:.2f} samples/s")
    print(f"{'model FLOPs':26s} {flops / batch_size / 1e12:10.3f} T per sample")
    print(f"{'utilisation':26s} {flops / whole / peak:10.1%} of {peak / 1e12:.2f} TFLOP/s, a matrix product's")
    print(f"{'data, one process':26s} {batch_size / data:10.1f} samples/s")
    if opt.workers:
        print(f"{'data, loader to device':26s} {loading:10.1f} samples/s with {opt.workers} workers")
    what = f"{device}, batch {batch_size}, {size} px, {opt.precision}{', compiled' if opt.compile else ''}"
    print(f"{'peak memory':26s} {peak_memory(device) / 1e9:10.2f} GB ({what})")


def rate_of_loader(dataset: OpenImageDataset, batch_size: int, workers: int, device: torch.device) -> float:
    """Samples per second that reach the device, without training beside it."""
    count = 12 * batch_size
    sampler = [(0, i % len(dataset)) for i in range(count)]
    pinned = device.type == "cuda"
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, pin_memory=pinned)
    starts = []
    for batch in tqdm(loader, desc="loader", unit="batch"):
        for tensor in batch.values():
            tensor.to(device, non_blocking=True)
        starts.append(time.perf_counter())
    return batch_size * 8 / (starts[-1] - starts[3])


def peak_memory(device: torch.device) -> int:
    """Of the device, or, on the CPU, of this process, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_flops(model: torch.nn.Module, size: int) -> int:
    """Of a training step's sample: three times the UNet's forward pass, the autoencoder's twice, CLIP's once."""
    device = next(model.parameters()).device
    latent = torch.zeros(1, model.channels + 5, *2 * (size // model.first_stage_model.factor,), device=device)
    side = model.cond_stage_model.image_size

    def count(function, *inputs: torch.Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function(*inputs)
        return counter.get_total_flops()

    context = torch.zeros(1, 1, model.model.diffusion_model.context_dim, device=device)
    unet = count(model.apply_model, latent, torch.zeros(1, device=device, dtype=torch.long), context)
    vae = count(model.encode_first_stage, torch.zeros(1, 3, size, size, device=device))
    clip = count(model.get_learned_conditioning, torch.zeros(1, 3, side, side, device=device))
    return 3 * unet + 2 * vae + clip


# ------------------------------------------------------------------------------------------ the estimate


def estimate(config: DictConfig, batch_sizes: list[int]) -> None:
    print(
        "| batch | precision | gradient checkpointing | weights, gradients, optimizer | kept for backward | together |"
    )
    print("|---|---|---|---|---|---|")
    for precision in PRECISIONS:
        for checkpointing in (False, True):
            section = OmegaConf.merge(
                config["model"], {"params": {"unet_config": {"params": {"use_checkpoint": checkpointing}}}}
            )
            for batch_size in batch_sizes:
                size = config["data"]["params"]["train"]["params"]["image_size"]
                static, kept = count_bytes(section, batch_size, size, PRECISIONS[precision])
                print(
                    f"| {batch_size} | {precision} | {'yes' if checkpointing else 'no'} | {static / 1e9:.1f} GB | "
                    f"{kept / 1e9:.1f} GB | {(static + kept) / 1e9:.1f} GB |",
                    flush=True,
                )


def count_bytes(section: DictConfig, batch_size: int, size: int, dtype: torch.dtype | None) -> tuple[int, int]:
    """(weights + gradients + AdamW's two moments, tensors that the UNet's backward pass needs), bytes; nothing is
    allocated, the tensors are fake. What a checkpointed block computes again, one block at a time, is not counted."""
    model = empty_model({"model": section})
    model.setup("fit")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        own = {id(p) for p in model.parameters()}
        static = sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())
        latent = size // model.first_stage_model.factor
        x = torch.zeros(batch_size, model.channels + 5, latent, latent)
        context = torch.zeros(batch_size, 1, model.model.diffusion_model.context_dim, requires_grad=True)
        t = torch.zeros(batch_size, dtype=torch.long)
        kept: dict[int, int] = {}
        alive = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in own and (tensor._base is None or id(tensor._base) not in own):
                storage = tensor.untyped_storage()
                kept[storage._cdata] = storage.nbytes()
                alive.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            model.apply_model(x, t, context)
        return static, sum(kept.values())


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", default="configs/v1.yaml")
    p.add_argument("--batch_size", type=int, nargs="+", default=[4], help="of a process; several for --memory")
    p.add_argument("--steps", type=int, default=5, help="measured, after two that are not (5)")
    p.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the networks (bf16, by autocast)")
    p.add_argument("--compile", action="store_true", help="compile the networks, as main.py --compile does")
    p.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    p.add_argument("--workers", type=int, default=0, help="measure a loader of so many processes, too (0: do not)")
    p.add_argument("--device", help="cpu, cuda, mps (the best there is)")
    p.add_argument("--memory", action="store_true", help="the table of memory, estimated, instead of a measurement")
    opt = p.parse_args()
    if min(opt.batch_size) < 1 or opt.steps < 1:
        raise UserError("--batch_size and --steps have to be at least 1")
    config = load_config(opt.config)
    if opt.memory:
        estimate(config, opt.batch_size)
    else:
        measure(config, opt.batch_size[0], opt.steps, pick_device(opt.device), opt)


if __name__ == "__main__":
    main()
