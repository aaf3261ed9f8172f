"""Edit every case of a benchmark, for scripts/eval_fid_qs_clip.py to score.

    python scripts/inference_test_bench.py --outdir results/test_bench --scale 5
    torchrun --nproc_per_node 8 scripts/inference_test_bench.py --outdir results/test_bench --scale 5

Writes <outdir>/results/<id>.png, of the size of the case's photo, and <outdir>/settings.json, what they were made with.
Under torchrun (or with RANK and WORLD_SIZE set) each process takes its share, on the GPU of its LOCAL_RANK. What is
there already is not made again: a run that was stopped goes on, with more or fewer processes too. Each case has a seed
of its own, so that its picture depends neither on its batch nor on the number of processes."""

import argparse
import json
import os
from pathlib import Path

from ldm.arguments import add_model, add_sampling, sampler_of
from ldm.util import UserError, command, sha256_of, staging


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bench", default="test_bench", help="folder of the benchmark (%(default)s)")
    p.add_argument("--outdir", type=Path, default=Path("results/test_bench"), help="(%(default)s)")
    p.add_argument("--batch_size", type=int, default=4, help="pictures made at once (4)")
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of all cases together; each draws its own from it (321)")
    add_model(p)
    return p


def share() -> tuple[int, int]:
    """(which, of how many) processes this one is."""
    try:
        rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        if not 0 <= rank < world:
            raise ValueError
    except ValueError as error:
        raise UserError(
            "RANK and WORLD_SIZE: have to be numbers, RANK from 0 on; unset both, or use torchrun"
        ) from error
    return rank, world


def agree(path: Path, settings: dict) -> None:
    """Writes the settings, or sees that the results already there were made with the same. Raises UserError."""
    if not path.exists():
        with staging(path.parent) as temporary:
            (temporary / path.name).write_text(json.dumps(settings, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text())
        different = [name for name in settings if before.get(name) != settings[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name another --outdir") from error
    if different:
        name = different[0]
        raise UserError(
            f"{path.parent}: its results were made with {name} {before.get(name)}, not {settings[name]}; name another "
            "--outdir, or remove them"
        )


@command
def main() -> None:
    opt = parser().parse_args()
    sampler = sampler_of(opt)
    rank, world = share()
    if not 1 <= opt.batch_size <= 1000:
        raise UserError(f"--batch_size {opt.batch_size} is out of range; use 1 to 1000")

    from ldm.data.test_bench_dataset import COCOImageDataset

    bench = COCOImageDataset(opt.bench)

    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    from ldm.checkpoint import DEFAULT_CONFIG, find_checkpoint
    from ldm.conventions import tensor_to_image
    from ldm.pipeline import PaintByExample, check_request, stack

    check_request(opt.scale, opt.ddim_steps, sampler, opt.ddim_eta, [opt.seed])
    ckpt = find_checkpoint(opt.ckpt)
    settings = {"scale": opt.scale, "sampler": sampler, "steps": opt.ddim_steps, "eta": opt.ddim_eta, "seed": opt.seed}
    settings |= {"checkpoint": Path(ckpt).name, "sha256": sha256_of(ckpt), "precision": opt.precision or "default"}
    if opt.lora:
        settings |= {"lora": Path(opt.lora).name, "lora_sha256": sha256_of(opt.lora), "lora_scale": opt.lora_scale}
    agree(opt.outdir / "settings.json", settings)
    results = opt.outdir / "results"
    mine = range(len(bench))[rank::world]
    todo = [i for i in mine if not (results / f"{bench.ids[i]}.png").exists()]
    if len(todo) < len(mine):
        print(f"{len(mine) - len(todo)} of {len(mine)} results are there already", flush=True)
    if not todo:
        return
    device = opt.device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if has_cuda() else None)
    edit = PaintByExample.load(opt.config or DEFAULT_CONFIG, ckpt, device, opt.precision, opt.lora, opt.lora_scale)

    def make(cases: list) -> None:
        """Edits of one size."""
        seeds = [
            int(
                np.random.SeedSequence((opt.seed, *bench.ids[i].encode())).generate_state(1, np.uint64)[0]
                >> np.uint64(1)
            )
            for i, _, _ in cases
        ]
        inputs = stack([inputs for _, _, inputs in cases])
        pictures = edit.sample(inputs, seeds, opt.scale, opt.ddim_steps, sampler, opt.ddim_eta, progress=False)
        with staging(results) as temporary:
            for (i, size, _), tensor in zip(cases, pictures, strict=True):
                picture = tensor_to_image(tensor)
                if picture.size != size:
                    picture = picture.resize(size, Image.Resampling.LANCZOS)
                picture.save(temporary / f"{bench.ids[i]}.png")
        bar.update(len(cases))

    waiting: dict[tuple[int, ...], list] = {}  # by size: a batch is of one
    problems = []
    with tqdm(desc="editing", total=len(todo), unit="picture", disable=rank > 0) as bar:
        for i in todo:
            try:
                photo, mask, reference = bench.pictures(i)
                inputs = edit.prepare(photo, mask, reference)
            except UserError as error:
                problems.append(str(error))
                continue
            same = waiting.setdefault(tuple(inputs.image.shape), [])
            same.append((i, photo.size, inputs))
            if len(same) == opt.batch_size:
                make(same)
                same.clear()
        for rest in waiting.values():
            if rest:
                make(rest)
    if problems:
        few = "; ".join(problems[:3])
        raise UserError(f"{len(problems)} of {len(todo)} cases could not be edited ({few}); mend them and run it again")
    print(f"wrote {len(todo)} results to {results}")


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
