"""How fast an edit is, beside diffusers' pipeline with the same weights and this one without what makes it fast.

    python scripts/benchmark.py                                  # the parts of an edit: seconds, ratios, differences
    python scripts/benchmark.py --edits --compile --batch_size 8 # whole edits, for a GPU
    python scripts/benchmark.py --allocator                      # with and without the memory kept between steps
    python scripts/benchmark.py --profile results/profile        # where a step's time goes, and a trace

Everything is measured in one run, in turn, with random weights of the config's size. Ratios are to the first row."""

import argparse
import json
import sys
from pathlib import Path

from ldm.cli.command import command
from ldm.fast.memory import keep_memory
from ldm.files import staging
from ldm.util import UserError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", default="configs/v1.yaml", help="(%(default)s)")
    p.add_argument("--size", type=int, default=512, help="of the square picture, pixels (512)")
    p.add_argument("--batch_size", type=int, default=1, help="edits at once (1)")
    p.add_argument("--rounds", type=int, default=5, help="of which the median is taken (5)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest there is)")
    p.add_argument(
        "--precision", nargs="+", choices=("full", "bf16", "fp16"), help="(full, and bf16 where it gains time)"
    )
    p.add_argument("--compile", action="store_true", help="the compiled networks as well, ours and diffusers'")
    p.add_argument("--edits", action="store_true", help="whole edits as well: minutes on a CPU")
    p.add_argument("--preset", nargs="*", default=[], help="with --edits: these presets of ours as well")
    p.add_argument("--allocator", action="store_true", help="what keeping memory between steps is worth, instead")
    p.add_argument("--profile", type=Path, metavar="FOLDER", help="a step's layers and a trace, instead")
    p.add_argument("--json", type=Path, help="write the rows there, too")
    return p


def show(rows: list[dict], file: Path | None = None, **about: object) -> None:
    """Prints rows as a table; writes them, with what they are about."""
    for row in rows:
        words = [f"{row['part']:28s}", f"{row.get('who', ''):28s}", f"{1e3 * row['seconds']:12.2f} ms"]
        if "ratio" in row:
            words.append(f"{row['ratio']:6.2f} x")
        if "max_difference" in row:
            words.append(f"   differs by {row['max_difference']:.1e} at most, {row['rms_difference']:.1e} rms")
        if "edits_per_second" in row:
            words.append(f"{row['edits_per_second']:8.2f} edits/s")
        if "flops" in row:
            words.append(f"{row['flops'] / 1e9:9.1f} GF {row['share_of_peak']:6.1%} of a matrix product's rate")
        print(" ".join(words), flush=True)
    if file:
        with staging(file.parent) as folder:
            (folder / file.name).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


@command
def main() -> None:
    opt = parser().parse_args()
    for name in ("size", "batch_size", "rounds"):
        if not 1 <= getattr(opt, name) <= 10000:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use 1 to 10000")
    if not opt.allocator:
        keep_memory()

    import torch

    from ldm.editing.checks import pick_device
    from ldm.fast.networks import preferred_half_dtype
    from ldm.pipeline import PaintByExample
    from ldm.speed import contestants as speed

    device = pick_device(opt.device)
    opt.precision = opt.precision or ["full", *(["bf16"] if preferred_half_dtype(device) == torch.bfloat16 else [])]
    about = {"config": opt.config, "size": opt.size, "batch_size": opt.batch_size, "torch": torch.__version__}
    about["device"] = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores"
    )
    if opt.allocator:
        show(speed.compare_allocators(opt.config, opt.size, opt.precision, opt.rounds), opt.json, **about)
        return
    model = speed.random_model(opt.config, device)
    if opt.size % model.size_multiple:
        raise UserError(f"--size {opt.size}: the model takes multiples of {model.size_multiple}")
    if opt.profile:
        with staging(opt.profile) as folder:
            edit = PaintByExample(model, opt.precision[-1])
            show(speed.profile_step(edit, opt.size, str(folder / "step.json.gz")), opt.json, **about)
        print(f"wrote {opt.profile / 'step.json.gz'}: open it in Perfetto or chrome://tracing")
        return

    contestants = [speed.Diffusers(model, precision) for precision in opt.precision]
    contestants.append(speed.Ours(model, "full", fast=False))
    contestants += [speed.Ours(model, precision) for precision in opt.precision]
    if opt.compile:
        contestants += [make(model, opt.precision[-1], compiled=True) for make in (speed.Diffusers, speed.Ours)]
    rows = speed.compare_parts(contestants, opt.size, opt.batch_size, opt.rounds)
    rows += speed.sum_of_parts(rows)
    show(rows)
    if opt.edits:
        given = speed.pictures(opt.size, opt.batch_size)
        calls = {c.name: lambda c=c: c.edit(given) for c in contestants if c.name != "ours, full, plain"}
        for preset in opt.preset:
            last = contestants[-1]
            calls[f"{last.name}, {preset}"] = lambda last=last, preset=preset: last.edit(given, preset=preset)
        whole = speed.compare_edits(calls, opt.batch_size, opt.rounds, device)
        show(whole)
        rows += whole
    if opt.json:
        show([], opt.json, **about | {"measured": rows})
    print(f"{about}", file=sys.stderr)


if __name__ == "__main__":
    main()
