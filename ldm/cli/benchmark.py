"""Measure the speed of an edit, beside diffusers' pipeline with the same weights and beside our own networks without
the code that makes them fast.

    paint-by-example benchmark                                   # the parts of an edit: seconds, ratios, differences
    paint-by-example benchmark --edits --compile --batch_size 8  # complete edits, for a GPU
    paint-by-example benchmark --allocator                       # with and without keeping memory between steps
    paint-by-example benchmark --profile results/profile         # where a step's time goes, and a trace

All contestants are measured in turn, in one run, with random weights of the config's size. Ratios are to the first row.
scripts/benchmark.py is the same command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser
from ldm.fast import memory
from ldm.files import staging
from ldm.util import UserError

if TYPE_CHECKING:
    import torch

    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.speed.compare import Row


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--config", default="configs/v1.yaml", help="(%(default)s)")
    p.add_argument("--size", type=int, default=512, help="side of the square picture, pixels (512)")
    p.add_argument("--batch_size", type=int, default=1, help="edits at once (1)")
    p.add_argument("--rounds", type=int, default=5, help="measurements, of which the median is taken (5)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest available)")
    p.add_argument(
        "--precision", nargs="+", choices=("full", "bf16", "fp16"), help="(full, and bf16 where it saves time)"
    )
    p.add_argument("--compile", action="store_true", help="measure the compiled networks too, ours and diffusers'")
    p.add_argument("--edits", action="store_true", help="measure complete edits too: minutes on a CPU")
    p.add_argument("--preset", nargs="*", default=[], help="with --edits: measure our edits with these presets too")
    p.add_argument("--allocator", action="store_true", help="only measure what keeping memory between steps is worth")
    p.add_argument("--profile", type=Path, metavar="FOLDER", help="only profile a step, and write a trace there")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    for name in ("size", "batch_size", "rounds"):
        if not 1 <= getattr(opt, name) <= 10000:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range: use 1 to 10000")
    if not opt.allocator:
        memory.keep_memory()

    import torch

    from ldm.checkpoint.load import random_model
    from ldm.editing.checks import pick_device
    from ldm.fast.networks import preferred_half_dtype

    device = pick_device(opt.device)
    opt.precision = opt.precision or ["full", *(["bf16"] if preferred_half_dtype(device) == torch.bfloat16 else [])]
    about = {
        "config": opt.config,
        "size": opt.size,
        "batch_size": opt.batch_size,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores",
    }
    if opt.allocator:
        from ldm.speed.allocators import compare_allocators

        rows = show(compare_allocators(opt.config, opt.size, opt.precision, opt.rounds))
        return save(opt.json, about | {"rows": rows})
    model = random_model(opt.config, device)
    if opt.size % model.size_multiple:
        raise UserError(f"--size {opt.size} does not fit the model: use a multiple of {model.size_multiple}")
    if opt.profile:
        return save(opt.json, about | {"rows": profile(opt, model)})
    save(opt.json, about | {"measured": compare(opt, model, device), "rows": []})
    print(about, file=sys.stderr)


def compare(opt: argparse.Namespace, model: LatentDiffusion, device: torch.device) -> list[Row]:
    """Measures the parts of an edit and, with --edits, complete edits."""
    from ldm.speed.compare import compare_edits, compare_parts, estimate_edits
    from ldm.speed.contestants import Diffusers, Ours, Pictures

    plain = Ours(model, "full", fast=False)
    contestants = [Diffusers(model, precision) for precision in opt.precision]
    contestants += [plain, *(Ours(model, precision) for precision in opt.precision)]
    if opt.compile:
        contestants += [contestant(model, opt.precision[-1], compiled=True) for contestant in (Diffusers, Ours)]
    rows = compare_parts(contestants, opt.size, opt.batch_size, opt.rounds)
    rows = show(rows + estimate_edits(rows))
    if opt.edits:
        pictures = Pictures.random(opt.size, opt.batch_size)
        calls = {c.name: lambda c=c: c.edit(pictures) for c in contestants if c is not plain}
        last = contestants[-1]
        for preset in opt.preset:
            calls[f"{last.name}, {preset}"] = lambda preset=preset: last.edit(pictures, preset)
        rows += show(compare_edits(calls, opt.batch_size, opt.rounds, device))
    return rows


def profile(opt: argparse.Namespace, model: LatentDiffusion) -> list[Row]:
    """Profiles a step of our networks and writes its trace into the folder --profile."""
    from ldm.pipeline import PaintByExample
    from ldm.speed.profile import profile_step

    with staging(opt.profile) as folder:
        rows = show(profile_step(PaintByExample(model, opt.precision[-1]), opt.size, str(folder / "step.json.gz")))
    print(f"wrote {opt.profile / 'step.json.gz'}: open it in Perfetto or chrome://tracing")
    return rows


def show(rows: list[Row]) -> list[Row]:
    """Prints the rows as a table, and returns them."""
    for row in rows:
        print(row, flush=True)
    return rows


def save(file: Path | None, content: dict[str, object]) -> None:
    """Writes JSON, if a file is given."""
    if file:
        with staging(file.parent) as folder:
            text = json.dumps(content, indent=1, default=lambda row: row.as_json())
            (folder / file.name).write_text(text + "\n")
