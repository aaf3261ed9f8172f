"""Edit every case of a benchmark, for scripts/eval_fid_qs_clip.py to score.

    python scripts/inference_test_bench.py --outdir results/test_bench --scale 5
    torchrun --nproc_per_node 8 scripts/inference_test_bench.py --outdir results/test_bench --scale 5

Writes <outdir>/results/<id>.png, of the size of the case's photo, and <outdir>/settings.json, what they were made with.
Under torchrun (or with RANK and WORLD_SIZE set) each process takes its share, on the GPU of its LOCAL_RANK. What is
there already is not made again: a run that was stopped goes on, with more or fewer processes too. Each case has a seed
of its own: batches and the number of processes change nothing but rounding."""

import argparse
import os
import sys
from pathlib import Path

from ldm.cli.command import command
from ldm.cli.flags import add_model, add_sampling, loading_of, sampling_of
from ldm.fast.memory import keep_memory
from ldm.files import sha256_of, staging
from ldm.util import UserError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bench", default="test_bench", help="folder of the benchmark (%(default)s)")
    p.add_argument("--outdir", type=Path, default=Path("results/test_bench"), help="(%(default)s)")
    p.add_argument(
        "--grid",
        type=int,
        default=0,
        help="draw so many cases side by side, to <outdir>/grid.png; of one process alone (none)",
    )
    p.add_argument("--batch_size", type=int, default=4, help="pictures made at once (4)")
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of all cases together; each draws its own from it (321)")
    add_model(p)
    return p


@command
def main() -> None:
    opt = parser().parse_args()
    keep_memory()
    sampling = sampling_of(opt)
    for name, least in (("batch_size", 1), ("grid", 0)):
        if not least <= getattr(opt, name) <= 1000:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use {least} to 1000")

    from ldm.data.bench.cocoee import COCOImageDataset, refuse, result_path

    bench = COCOImageDataset(opt.bench)
    refuse(bench.problems(), len(bench), "be edited", "mend them")

    import torch

    from ldm.batch.benchmark import agree, edit_cases, settings_of, share, sheet
    from ldm.checkpoint.locate import choose_model
    from ldm.editing.checks import check_request
    from ldm.pipeline import PaintByExample
    from ldm.util import load_config

    rank, world = share()
    check_request(seeds=[opt.seed], **sampling)
    config, ckpt = choose_model(opt.config, opt.ckpt, adapted=opt.lora is not None)
    config = load_config(config)
    device = opt.device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else None)
    edit = PaintByExample.load(config, ckpt, **loading_of(opt) | {"device": device})
    settings = settings_of(config, ckpt, bench, edit.precision, opt.seed, **sampling)
    if opt.lora:
        settings |= {"lora": Path(opt.lora).name, "lora_sha256": sha256_of(opt.lora), "lora_scale": opt.lora_scale}
    if opt.decoder:
        settings |= {"decoder": Path(opt.decoder).name, "decoder_sha256": sha256_of(opt.decoder)}
    if opt.safety_checker != "off":
        settings["safety_checker"] = opt.safety_checker
    agree(opt.outdir / "settings.json", settings)

    results = opt.outdir / "results"
    mine = range(len(bench))[rank::world]
    todo = [i for i in mine if not result_path(results, bench.ids[i]).exists()]
    if len(todo) < len(mine):
        print(f"{len(mine) - len(todo)} of {len(mine)} results are there already", flush=True)
    problems = edit_cases(edit, bench, todo, results, opt.seed, opt.batch_size, rank == 0, **sampling)
    print(f"{results}: {len(todo) - len(problems)} pictures written", flush=True)
    made = [i for i, name in enumerate(bench.ids) if result_path(results, name).exists()]
    if opt.grid and made and world == 1:
        with staging(opt.outdir) as temporary:
            sheet(bench, [results], made[: opt.grid]).save(temporary / "grid.png")
        print(f"wrote {opt.outdir / 'grid.png'}: photo, region, reference, edit", flush=True)
    if problems:
        few = f"{len(problems)} of {len(todo)} cases could not be edited ({'; '.join(problems[:3])})"
        if world == 1:
            raise UserError(f"{few}; mend them and run it again")
        print(few, file=sys.stderr)  # an exit code would make torchrun end the other processes


if __name__ == "__main__":
    main()
