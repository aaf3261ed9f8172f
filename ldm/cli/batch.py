"""Edit many photos by example: each row of a table is an edit.

    paint-by-example batch jobs.csv --scale 5

jobs.csv has the columns image, mask or box (x0,y0,x1,y1, quoted), reference, out and, optionally, seed, scale, sampler
and steps, which take precedence over the flags; its paths are relative to its folder. Rows of one size with the same
settings are made together, --batch_size at once. Finished pictures are skipped, so that an interrupted run continues.
A row that cannot be edited does not stop the others. jobs.results.csv, beside the table, says what became of each row:
line, out, status, reason, seconds. scripts/edit_batch.py is the same command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import (
    add_editing,
    add_model,
    add_sampling,
    blending_from,
    check_range,
    loading_from,
    placement_from,
    sampling_from,
)
from ldm.fast import memory
from ldm.util import UserError

LOADING_SETTINGS = ("precision", "config", "ckpt", "lora", "lora_scale", "decoder", "safety_checker", "watermark")


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("jobs", type=Path, help="the table, a CSV file")
    p.add_argument("--batch_size", type=int, default=4, help="pictures made at once (4)")
    p.add_argument("--devices", nargs="+", help="each takes its share, in a process of its own: cuda:0 cuda:1"
                   " (default: --device, or all NVIDIA GPUs)")  # fmt: skip
    add_editing(p)
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of rows that give none (321)")
    add_model(p)
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "batch_size")
    memory.keep_memory()

    import torch
    from tqdm import tqdm

    from ldm.batch.runner import BatchOptions, run_on_devices
    from ldm.batch.table import FAILED, Account, Outcome, read_jobs, split_finished
    from ldm.checkpoint.locate import choose_model
    from ldm.editing.checks import pick_device
    from ldm.editing.options import check_seed
    from ldm.editing.watermark import check_watermark

    sampling, placement, blending, loading = (
        read(opt) for read in (sampling_from, placement_from, blending_from, loading_from)
    )
    check_seed(opt.seed)
    if opt.watermark:
        check_watermark()
    jobs, bad = read_jobs(opt.jobs, opt.seed, sampling, opt.preset)
    account = Account(opt.jobs.with_suffix(".results.csv"))
    todo, finished = split_finished(jobs, account)
    account.begin([*finished, *bad])
    for outcome in bad:
        print(f"line {outcome.line}: {outcome.reason}", file=sys.stderr)
    if finished:
        print(f"{len(finished)} of {len(jobs)} pictures are finished already")

    config, ckpt = choose_model(opt.config, opt.ckpt, adapted=opt.lora is not None)
    gpus = torch.cuda.device_count() if opt.device is None else 0
    devices = opt.devices or [f"cuda:{i}" for i in range(gpus)] or [opt.device]
    for device in devices:
        pick_device(device)
    settings = {name: getattr(opt, name) for name in LOADING_SETTINGS} | {"checkpoint": Path(ckpt).name}
    loading = replace(loading, config=config, ckpt=ckpt)
    options = BatchOptions(loading, placement, blending, settings, opt.watermark, opt.batch_size)
    failed = list(bad)
    with tqdm(desc="editing", total=len(todo), unit="picture") as bar:

        def report(outcome: Outcome) -> None:
            account.add(outcome)
            bar.update()
            if outcome.status == FAILED:
                failed.append(outcome)
                bar.write(f"line {outcome.line}: {outcome.reason}", file=sys.stderr)

        if todo:
            run_on_devices(devices, todo, options, report)
    print(f"{len(todo) + len(bad) - len(failed)} pictures written; {account.path} accounts for all rows")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs) + len(bad)} rows could not be edited: correct them and run it again"
        )
