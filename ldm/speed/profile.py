"""Where the time of one guided step goes, by kinds of the UNet's layers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.fast.convert import PhaseUpsample
from ldm.fast.onednn import LINEAR_OPERATOR
from ldm.fast.unet import FastResBlock, FastSelfAttention, FastTransformer, prepare_edit
from ldm.modules.attention import FeedForward
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.pipeline import PaintByExample
from ldm.speed.compare import Row, matmul_rate, synchronize, timed
from ldm.speed.contestants import T
from ldm.util import UserError

KINDS = {  # of layers; a FastTransformer counts without the layers inside it
    "residual blocks": FastResBlock,
    "self-attention": FastSelfAttention,
    "feed-forward": FeedForward,
    "up": PhaseUpsample,
    "down": Downsample,
    "projections, norms": FastTransformer,
}
INSIDE_TRANSFORMER = (FastSelfAttention, FeedForward)
FLOPS = {  # of operators that PyTorch has no formula for
    LINEAR_OPERATOR: lambda x, w, *_, **__: 2 * math.prod(x) * w[0],
}


@torch.no_grad()
def profile_step(edit: PaintByExample, size: int, trace: str) -> list[Row]:
    """One guided step of the fast UNet, not compiled: operations by formula, seconds, and the share of a matrix
    product's rate, for each kind of layer, the rest, and the whole step.

    trace: a file to write for chrome://tracing or Perfetto. Raises UserError: the pipeline has the plain networks."""
    if not edit.networks.fast:
        raise UserError("--profile measures the fast networks: leave --plain out")
    unet, device = edit.networks.unet, edit.device
    step = _guided_step(edit, size)
    for _ in range(2):
        step()
    flops = _count_flops(unet, step)
    seconds = _time_layers(unet, step, device)
    with torch.profiler.profile() as profiler:
        step()
        synchronize(device)
    profiler.export_chrome_trace(trace)

    layers = {name: module for name, module in unet.named_modules() if name in seconds}
    peak = matmul_rate(device, edit.networks.dtype)

    def row(part: str, seconds: float, flops: float) -> Row:
        return Row(part, seconds=seconds, flops=flops, share_of_peak=flops / seconds / peak)

    rows = []
    for part, kind in KINDS.items():
        weights = {name: 1 for name, layer in layers.items() if isinstance(layer, kind)}
        if kind is FastTransformer:
            weights |= {name: -1 for name, layer in layers.items() if isinstance(layer, INSIDE_TRANSFORMER)}
        spent = sum(weight * seconds[name] for name, weight in weights.items())
        rows.append(row(part, spent, sum(weight * flops.get(name, 0) for name, weight in weights.items())))
    rest = [seconds[""] - sum(row.seconds for row in rows), flops[""] - sum(row.flops for row in rows)]
    return [*rows, row("the rest", *rest), row("step", seconds[""], flops[""])]


def _guided_step(edit: PaintByExample, size: int) -> Callable[[], Tensor]:
    unet, device = edit.networks.unet, edit.device
    side = size // edit.model.first_stage_model.factor
    x, inpaint = (torch.randn(1, channels, side, side, device=device) for channels in (4, 5))
    contexts = torch.randn(2, 1, edit.model.model.diffusion_model.context_dim, device=device)
    fixed, vectors = prepare_edit(edit.model.model.diffusion_model, inpaint, contexts, edit.networks.dtype)
    return lambda: unet(x, edit.networks.shifts[T : T + 1], fixed, vectors)


def _count_flops(unet: nn.Module, step: Callable[[], Tensor]) -> dict[str, int]:
    """Name of a layer -> operations; "" for the whole step."""
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        step()
    counts = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    prefix = f"{type(unet).__name__}."
    return {"": counts["Global"]} | {name.removeprefix(prefix): count for name, count in counts.items()}


def _time_layers(unet: nn.Module, step: Callable[[], Tensor], device: torch.device) -> dict[str, float]:
    """Name of a layer of one of the KINDS -> seconds; "" for the whole step."""
    seconds: dict[str, float] = {}
    handles = []
    for name, module in unet.named_modules():
        if isinstance(module, tuple(KINDS.values())):
            started: list[float] = []

            def before(*_: Any, started: list[float] = started) -> None:
                synchronize(device)
                started.append(time.perf_counter())

            def after(*_: Any, name: str = name, started: list[float] = started) -> None:
                synchronize(device)
                seconds[name] = time.perf_counter() - started.pop()

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    total, _ = timed(step, device)
    for handle in handles:
        handle.remove()
    return {"": total} | seconds
