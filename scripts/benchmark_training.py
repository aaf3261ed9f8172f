"""What a training step costs, and what fits into memory.

    python scripts/benchmark_training.py --config configs/tiny.yaml          # measured: seconds of each part, samples/s
    python scripts/benchmark_training.py --config configs/v1.yaml --memory   # estimated: GB by batch size and switches

Measured with random pictures and random weights. The estimate needs no device: it counts the weights, gradients,
optimizer states and the tensors kept for the backward pass, without allocating any of them."""

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.cli.command import command, command_parser
from ldm.editing.checks import pick_device
from ldm.speed.training import PRECISIONS, TrainingStep, estimate_memory, image_size, measure_training
from ldm.util import UserError, load_config


def measure(config: DictConfig, setup: TrainingStep, device: torch.device) -> None:
    speed = measure_training(config, setup, device)
    batch_size, total = setup.batch_size, sum(speed.parts.values())
    for part, seconds in speed.parts.items():
        print(f"{part:26s} {seconds * 1e3:10.1f} ms {seconds / total:6.1%}")
    utilisation = speed.flops * batch_size / speed.step / speed.peak_rate
    print(f"{'a whole step':26s} {speed.step * 1e3:10.1f} ms, {batch_size / speed.step:.2f} samples/s")
    print(f"{'model FLOPs':26s} {speed.flops / 1e12:10.3f} T per sample")
    print(f"{'utilisation':26s} {utilisation:10.1%} of {speed.peak_rate / 1e12:.2f} TFLOP/s, a matrix product's")
    print(f"{'data, one process':26s} {batch_size / speed.data:10.1f} samples/s")
    if speed.loader is not None:
        print(f"{'data, loader to device':26s} {speed.loader:10.1f} samples/s with {setup.workers} workers")
    size, compiled = image_size(config), ", compiled" if setup.compiled else ""
    what = f"{device}, batch {batch_size}, {size} px, {setup.precision}{compiled}"
    print(f"{'peak memory':26s} {speed.peak_memory / 1e9:10.2f} GB ({what})")


def estimate(config: DictConfig, batch_sizes: list[int]) -> None:
    print(
        "| batch | precision | gradient checkpointing | weights, gradients, optimizer | kept for backward | together |"
    )
    print("|---|---|---|---|---|---|")
    for precision, dtype in PRECISIONS.items():
        for checkpointing in (False, True):
            for batch_size in batch_sizes:
                memory = estimate_memory(config, batch_size, dtype, checkpointing)
                numbers = (memory.static, memory.activations, memory.static + memory.activations)
                sizes = " | ".join(f"{number / 1e9:.1f} GB" for number in numbers)
                checkpoints = "yes" if checkpointing else "no"
                print(f"| {batch_size} | {precision} | {checkpoints} | {sizes} |", flush=True)


@command
def main() -> None:
    p = command_parser(__doc__)
    p.add_argument(
        "--config", nargs="+", default=["configs/v1.yaml"], help="as main.py --base: later ones change earlier"
    )
    p.add_argument("--batch_size", type=int, nargs="+", default=[4], help="of a process; several for --memory")
    p.add_argument("--steps", type=int, default=5, help="steps to measure, after two that are not (5)")
    p.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the networks, by autocast (bf16)")
    p.add_argument("--compile", action="store_true", help="compile the networks, as main.py --compile does")
    p.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    p.add_argument("--workers", type=int, default=0, help="also measure a data loader with this many processes (0: no)")
    p.add_argument("--device", help="cpu, cuda, mps (default: the fastest available)")
    p.add_argument("--memory", action="store_true", help="print the estimated memory instead of measuring")
    opt = p.parse_args()
    if min(opt.batch_size) < 1 or opt.steps < 1:
        raise UserError("--batch_size or --steps is below 1: use at least 1")
    config = OmegaConf.merge(*map(load_config, opt.config))
    if opt.memory:
        return estimate(config, opt.batch_size)
    setup = TrainingStep(opt.batch_size[0], opt.steps, opt.precision, opt.compile, opt.checkpointing, opt.workers)
    measure(config, setup, pick_device(opt.device))


if __name__ == "__main__":
    main()
