"""Edit many photos by example: a row of a table is an edit.

    python scripts/edit_batch.py jobs.csv --scale 5

jobs.csv has the columns image, mask or box (x0,y0,x1,y1, quoted), reference, out and, if you like, seed, scale, sampler
and steps, which win over the flags; its paths are relative to its folder. Rows of one size and setting are made
together, --batch_size at once. What is there is not made again: a run that was stopped goes on. A row that cannot be
edited does not stop the others. jobs.results.csv, beside the table, says what became of each: line, out, status,
reason, seconds."""

import argparse
import sys
from pathlib import Path

from ldm.cli.command import command
from ldm.cli.edit_flags import check_editing, sampling_asked
from ldm.cli.flags import add_editing, add_model, add_sampling, loading_of
from ldm.fast.memory import keep_memory
from ldm.util import UserError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("jobs", type=Path, help="the table, a CSV")
    p.add_argument("--batch_size", type=int, default=4, help="pictures made at once (4)")
    p.add_argument("--devices", nargs="+", help="each takes its share, in a process of its own: cuda:0 cuda:1"
                   " (default: --device, or all GPUs of NVIDIA)")  # fmt: skip
    add_editing(p)
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of rows that name none (321)")
    add_model(p)
    return p


@command
def main() -> None:
    opt = parser().parse_args()
    if not 1 <= opt.batch_size <= 1000:
        raise UserError(f"--batch_size {opt.batch_size} is out of range; use 1 to 1000")
    sampling = sampling_asked(opt)
    keep_memory()

    import torch
    from tqdm import tqdm

    from ldm.batch.runner import How, run_on
    from ldm.batch.table import FAILED, Account, Outcome, read_jobs, still_to_do
    from ldm.checkpoint.locate import choose_model
    from ldm.editing.checks import check_request, pick_device

    check_request(seeds=[opt.seed], **sampling)
    check_editing(opt)
    jobs, bad = read_jobs(opt.jobs, opt.seed, sampling, opt.preset)
    account = Account(opt.jobs.with_suffix(".results.csv"))
    todo, there = still_to_do(jobs, account)
    account.begin([*there, *bad])
    for outcome in bad:
        print(f"line {outcome.line}: {outcome.reason}", file=sys.stderr)
    if there:
        print(f"{len(there)} of {len(jobs)} pictures are there already")

    config, ckpt = choose_model(opt.config, opt.ckpt, adapted=opt.lora is not None)
    loading = loading_of(opt) | {"config": config, "ckpt": ckpt}
    first = loading.pop("device")
    devices = opt.devices or [f"cuda:{i}" for i in range(torch.cuda.device_count() if first is None else 0)] or [first]
    for device in devices:
        pick_device(device)
    planning = {"context": opt.context, "reference_fit": opt.reference_fit}
    blending = {"background": opt.background, "feather": opt.feather}
    region = {"grow": opt.grow, "invert": opt.invert}
    named = (
        "precision",
        "config",
        "ckpt",
        "lora",
        "lora_scale",
        "decoder",
        "safety_checker",
        "watermark",
        "blend_latents",
    )
    settings = {**planning, **blending, **region, **{name: getattr(opt, name) for name in named}}
    how = How(
        loading,
        planning,
        region,
        blending,
        {"blend_latents": opt.blend_latents},
        settings | {"checkpoint": Path(ckpt).name},
        opt.watermark,
        opt.batch_size,
    )
    failed = list(bad)
    with tqdm(desc="editing", total=len(todo), unit="picture") as bar:

        def report(outcome: Outcome) -> None:
            account.add(outcome)
            bar.update()
            if outcome.status == FAILED:
                failed.append(outcome)
                bar.write(f"line {outcome.line}: {outcome.reason}", file=sys.stderr)

        if todo:
            run_on(devices, todo, how, report)
    print(f"{len(todo) + len(bad) - len(failed)} pictures written, all rows accounted for in {account.path}")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs) + len(bad)} rows could not be edited; mend them and run it again")


if __name__ == "__main__":
    main()
