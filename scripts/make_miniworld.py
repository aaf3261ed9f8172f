"""Draw the small world: scenes of painted shapes, as a data set in OpenImages' layout and a benchmark in COCOEE's.

    python scripts/make_miniworld.py
    python scripts/read_bbox.py --dataset_dir dataset/miniworld

Writes dataset/miniworld and test_bench_mini; the same flags make the same files. Training never sees the pairs of shape
and pattern that the benchmark's references have."""

import argparse
from pathlib import Path

from ldm.cli.command import command
from ldm.util import UserError


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset_dir", type=Path, default=Path("dataset/miniworld"), help="(%(default)s)")
    p.add_argument("--bench", type=Path, default=Path("test_bench_mini"), help="(%(default)s)")
    p.add_argument("--train", type=int, default=12000, help="scenes to train on (12000)")
    p.add_argument("--validation", type=int, default=500, help="(500)")
    p.add_argument("--test", type=int, default=500, help="(500)")
    p.add_argument("--pretraining", type=int, default=6000, help="scenes for CLIP and the classifier of results (6000)")
    p.add_argument("--cases", type=int, default=600, help="of the benchmark (600)")
    p.add_argument("--real", type=int, default=2000, help="scenes that results are compared with as a set (2000)")
    p.add_argument("--height", type=int, default=144, help="of a scene, in pixels; it is 4:3 (144)")
    p.add_argument("--side", type=int, default=64, help="of a case of the benchmark, in pixels (64)")
    p.add_argument("--seed", type=int, default=0, help="(0)")
    opt = p.parse_args()
    for name, least, most in (
        *((name, 1, 10**7) for name in ("train", "validation", "test", "pretraining", "cases", "real")),
        *(("height", 48, 1024), ("side", 16, 1024), ("seed", 0, 2**63 - 1)),
    ):
        if not least <= getattr(opt, name) <= most:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use {least} to {most}")

    from ldm.miniworld.write import write_bench, write_world

    size = (opt.height * 4 // 3, opt.height)
    counts = {split: getattr(opt, split) for split in ("train", "validation", "test", "pretraining")}
    for split, objects in write_world(opt.dataset_dir, counts, size, opt.seed).items():
        print(f"{opt.dataset_dir}: {split}, {counts[split]:,} scenes, {objects:,} objects")
    write_bench(opt.bench, opt.cases, opt.real, opt.side, size, opt.seed)
    print(f"{opt.bench}: {opt.cases:,} cases, {opt.real:,} real pictures")


if __name__ == "__main__":
    main()
