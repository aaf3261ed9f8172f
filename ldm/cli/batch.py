"""Edit many photos by example: each row of a table is an edit.

    paint-by-example batch jobs.csv --scale 5

jobs.csv has the columns image, reference, out, one of mask, box (x0,y0,x1,y1, quoted), polygon (x,y x,y x,y, quoted),
alpha (yes) and an object (click, click_not: x,y x,y, quoted; snap: as box) and, optionally, every setting of an edit,
which takes precedence over its flag: seed, scale, detail_scale, preset, sampler, steps, eta, strength, keep_layout,
keep, blend_latents, background, feather, context, grow, invert, mask_from_difference, height, width, reference_fit,
reference_cutout, segment, reference_mask, mix, together, windows, best, best_preset, judge, control_image and
control_scale. Its paths are relative to its folder; several references of one object are separated by |, several
regions and their references, to be painted together, by ||. Columns are separated by commas,
semicolons or tabs. Rows of one size with the same settings are made together, --batch_size at once. Pictures that are
there are kept, so that an interrupted run continues; those that other settings would make otherwise are named, and
--overwrite makes them again. A row that cannot be edited does not stop the others.
jobs.results.csv, beside the table, says what became of each row: line, out, status, reason, seconds.

    torchrun --nproc_per_node 8 scripts/edit_batch.py s3://bucket/jobs.csv --scale 5

The table and everything that it names may be in storage (s3://, gs://, hf://, https://); the account of a table that
can only be read is written to the working folder. Under torchrun or SLURM's srun, on any number of machines, each
process takes its share of the rows, on a GPU of its own, and writes its own part of the account.
scripts/edit_batch.py is the same command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser, counted
from ldm.cli.flags import (
    add_editing,
    add_model,
    add_sampling,
    blending_from,
    check_range,
    loading_from,
    placement_from,
    sampling_from,
    selection_from,
)
from ldm.fast import memory
from ldm.storage import READ_ONLY, Place, Url, place
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.batch.account import Outcome

LOADING_SETTINGS = (
    *("precision", "config", "ckpt", "lora", "lora_scale", "detail", "decoder", "safety_checker"),
    *("control", "watermark"),
)


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("jobs", type=place, help="the table, a CSV file, or its URL")
    p.add_argument("--batch_size", type=int, default=4, help="pictures made at once (4)")
    p.add_argument("--overwrite", action="store_true", help="also make the pictures that are there already")
    p.add_argument("--devices", nargs="+", help="each takes its share, in a process of its own: cuda:0 cuda:1"
                   " (default: --device, or all NVIDIA GPUs)")  # fmt: skip
    add_editing(p)
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of rows that give none (321)")
    add_model(p)
    return p


def account_path(table: Place) -> Place:
    """Beside the table, or in the working folder if that cannot be written to."""
    path = table.with_suffix(".results.csv")
    return Path(path.name) if isinstance(path, Url) and path.scheme in READ_ONLY else path


def report_kept(finished: Sequence[Outcome]) -> None:
    """Print how many pictures are kept, and which of them other settings would make otherwise."""
    from ldm.batch.account import KEPT

    if finished:
        print(f"kept: {counted(len(finished), 'picture')}, as they are there (--overwrite makes them again)")
    others = [outcome for outcome in finished if outcome.reason.startswith(KEPT)]
    for outcome in others[:10]:
        print(f"line {outcome.line}: {outcome.out} is {outcome.reason}")
    if len(others) > 10:
        print(f"... and {len(others) - 10} more, see the account")


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "batch_size")
    memory.keep_memory()

    import torch
    from tqdm import tqdm

    from ldm.batch.account import FAILED, Account, Outcome, split_finished
    from ldm.batch.ranks import local_rank, rank_and_world_size
    from ldm.batch.runner import BatchOptions, run_on_devices, settings_of_job
    from ldm.batch.table import Defaults, read_jobs
    from ldm.checkpoint.locate import choose_model
    from ldm.editing.checks import pick_device
    from ldm.editing.watermark import check_watermark

    rank, world = rank_and_world_size()
    sampling, placement, blending, loading = (
        read(opt) for read in (sampling_from, placement_from, blending_from, loading_from)
    )
    selection = selection_from(opt)
    selection.seeds(opt.seed)
    if opt.watermark:
        check_watermark()
    jobs, rows = read_jobs(opt.jobs, Defaults(opt.seed, sampling, placement, blending, opt.preset, selection))
    total = len(jobs) + len(rows)
    jobs, rows = jobs[rank::world], rows[rank::world]
    bad = [Outcome(row.line, row.out, FAILED, row.reason) for row in rows]
    if world > 1:
        print(f"process {rank} of {world}: {len(jobs) + len(bad)} of {total} rows", flush=True)
    for outcome in bad:
        print(f"line {outcome.line}: {outcome.reason}", file=sys.stderr)
    config, ckpt = choose_model(opt.config, opt.ckpt, opt.lora)
    gpus = torch.cuda.device_count() if opt.device is None else 0
    own = range(gpus) if world == 1 else [local_rank() % gpus] if gpus else []
    devices = opt.devices or [f"cuda:{i}" for i in own] or [opt.device]
    for device in devices:
        pick_device(device)
    settings = {name: getattr(opt, name) for name in LOADING_SETTINGS} | {"checkpoint": Path(ckpt).name}
    loading = replace(loading, config=config, ckpt=ckpt)
    options = BatchOptions(loading, settings, opt.watermark, opt.batch_size)
    account = Account(account_path(opt.jobs), rank, world)
    todo, finished = jobs, []
    if not opt.overwrite:
        todo, finished = split_finished(jobs, account, lambda job: settings_of_job(job, options))
    account.begin([*finished, *bad])
    report_kept(finished)
    failed = list(bad)
    with tqdm(desc="editing", total=len(todo), unit="picture", disable=rank > 0) as bar:

        def report(outcome: Outcome) -> None:
            account.add(outcome)
            bar.update()
            if outcome.status == FAILED:
                failed.append(outcome)
                bar.write(f"line {outcome.line}: {outcome.reason}", file=sys.stderr)

        try:
            if todo:
                run_on_devices(devices, todo, options, report)
        finally:
            complete = account.close(total)
    written = len(todo) + len(bad) - len(failed)
    rest = f"{account.path} accounts for all rows" if complete else f"{account.own} accounts for this process's rows"
    print(f"{counted(written, 'picture')} written, {len(finished)} kept; {rest}", flush=True)
    if failed:
        summary = f"{len(failed)} of {len(jobs) + len(bad)} rows could not be edited: correct them and run it again"
        if world == 1:
            raise UserError(summary)
        print(summary, file=sys.stderr)  # an exit code would make torchrun end the other processes
