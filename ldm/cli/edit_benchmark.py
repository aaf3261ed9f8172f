"""Edit every case of a benchmark. paint-by-example evaluate then scores the results.

    paint-by-example edit-benchmark --outdir results/test_bench --scale 5
    torchrun --nproc_per_node 8 scripts/inference_test_bench.py --outdir results/test_bench --scale 5

Writes <outdir>/results/<id>.png, of the size of the case's photo, and <outdir>/settings.json with the settings of
the edits. Under torchrun or SLURM's srun each process takes its share, on a GPU of its own.
Finished results are skipped, so an interrupted run continues, even with another number of processes. Each case has
its own seed: batches and the number of processes change nothing except rounding. scripts/inference_test_bench.py
is the same command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.cli.command import command, command_parser, counted
from ldm.cli.flags import (
    add_model,
    add_sampling,
    add_selection,
    check_range,
    loading_from,
    sampling_from,
    selection_from,
)
from ldm.fast import memory
from ldm.files import sha256_of, staging
from ldm.util import UserError, load_config


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--bench", default="test_bench", help="folder of the benchmark (%(default)s)")
    p.add_argument("--outdir", type=Path, default=Path("results/test_bench"), help="(%(default)s)")
    p.add_argument("--grid", type=int, default=0, help="number of cases to draw side by side in <outdir>/grid.png; with"
                   " a single process only (none)")  # fmt: skip
    p.add_argument("--batch_size", type=int, default=4, help="pictures made at once (4)")
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of all cases together; each derives its own from it (321)")
    add_selection(p.add_argument_group("best of several seeds"))
    add_model(p)
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    memory.keep_memory()
    check_range(opt, "batch_size")
    check_range(opt, "grid", low=0)

    from ldm.data.bench.cocoee import COCOImageDataset, raise_on_problems, result_path

    bench = COCOImageDataset(opt.bench)
    raise_on_problems(bench.problems(), len(bench), "be edited", "repair their files")

    import torch

    from ldm.batch.benchmark import (
        benchmark_settings,
        contact_sheet,
        edit_cases,
        require_same_settings,
    )
    from ldm.batch.ranks import local_rank, rank_and_world_size
    from ldm.checkpoint.locate import choose_model
    from ldm.editing.options import check_seed
    from ldm.pipeline import PaintByExample

    rank, world = rank_and_world_size()
    sampling, selection = sampling_from(opt), selection_from(opt)
    check_seed(opt.seed)
    config, ckpt = choose_model(opt.config, opt.ckpt, opt.lora)
    config = load_config(config)
    device = opt.device or (f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else None)
    edit = PaintByExample.from_loading(replace(loading_from(opt), config=config, ckpt=ckpt, device=device))
    settings = benchmark_settings(config, ckpt, bench, edit.precision, opt.seed, sampling, selection) | _parts(opt)
    require_same_settings(opt.outdir / "settings.json", settings)

    results = opt.outdir / "results"
    share = range(len(bench))[rank::world]
    todo = [i for i in share if not result_path(results, bench.ids[i]).exists()]
    if len(todo) < len(share):
        print(f"{len(share) - len(todo)} of {len(share)} results are finished already", flush=True)
    how = (opt.seed, opt.batch_size, sampling, rank == 0, selection)
    problems = edit_cases(edit, bench, todo, results, *how)
    print(f"{results}: {counted(len(todo) - len(problems), 'picture')} written", flush=True)
    finished = [i for i, name in enumerate(bench.ids) if result_path(results, name).exists()]
    if opt.grid and finished and world == 1:
        with staging(opt.outdir) as temporary:
            contact_sheet(bench, [results], finished[: opt.grid]).save(temporary / "grid.png")
        print(f"wrote {opt.outdir / 'grid.png'}: photo, region, reference, edit", flush=True)
    if problems:
        summary = f"{len(problems)} of {len(todo)} cases could not be edited ({'; '.join(problems[:3])})"
        if world == 1:
            raise UserError(f"{summary}: correct them and run it again")
        print(summary, file=sys.stderr)  # an exit code would make torchrun end the other processes


def _parts(opt: argparse.Namespace) -> dict[str, Any]:
    """Entries of settings.json for what is added to the model."""
    from ldm.batch.benchmark import detail_settings

    parts: dict[str, Any] = {}
    if opt.lora:
        from ldm.checkpoint.adapters import alone, in_list

        paths = in_list(opt.lora)
        parts |= {"lora": alone([Path(path).name for path in paths]), "lora_scale": opt.lora_scale}
        parts["lora_sha256"] = alone([sha256_of(path) for path in paths])
    if opt.detail:
        parts |= detail_settings(opt.detail, opt.detail_scale)
    if opt.decoder:
        parts |= {"decoder": Path(opt.decoder).name, "decoder_sha256": sha256_of(opt.decoder)}
    if opt.safety_checker != "off":
        parts["safety_checker"] = opt.safety_checker
    return parts
