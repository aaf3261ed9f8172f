"""Draw the small world: scenes of painted shapes, as a data set in OpenImages' layout and a benchmark in COCOEE's.

    paint-by-example make-miniworld
    paint-by-example prepare --dataset_dir dataset/miniworld
    paint-by-example make-miniworld --individuals

Writes dataset/miniworld and test_bench_mini; equal flags write equal files. Training never sees the pairs of shape
and pattern that the benchmark's references have.

--individuals draws objects with an outline and a texture of their own, each in several scenes, and writes
dataset/individuals and test_bench_individuals. Training never sees the benchmark's individuals. Every third scene to
train on shows the twelve shapes.

scripts/make_miniworld.py is the same command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range

SPLITS = ("train", "validation", "test", "pretraining")


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--individuals", action="store_true", help="draw individuals")
    p.add_argument("--dataset_dir", type=Path, help="(dataset/miniworld or dataset/individuals)")
    p.add_argument("--bench", type=Path, help="(test_bench_mini or test_bench_individuals)")
    p.add_argument("--train", type=int, default=36000, help="scenes to train on (%(default)s)")
    p.add_argument("--validation", type=int, default=500, help="scenes to validate on (%(default)s)")
    p.add_argument("--test", type=int, default=500, help="scenes to test on (%(default)s)")
    p.add_argument("--pretraining", type=int, default=30000, help="scenes for CLIP and the oracle (%(default)s)")
    p.add_argument("--cases", type=int, default=600, help="cases of the benchmark (%(default)s)")
    p.add_argument("--real", type=int, default=2000, help="real pictures of the benchmark, for FID (%(default)s)")
    p.add_argument("--height", type=int, default=144, help="of a scene, in pixels; it is 4:3 (%(default)s)")
    p.add_argument("--side", type=int, default=128, help="of a picture of the benchmark, in pixels (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    for name in (*SPLITS, "cases", "real"):
        check_range(opt, name, 1, 10**7)
    check_range(opt, "height", 48, 1024)
    check_range(opt, "side", 16, 1024)
    check_range(opt, "seed", 0, 2**63 - 1)

    from ldm.miniworld.worlds import DEFAULT_WORLD, Individuals
    from ldm.miniworld.write import write_bench, write_world

    dataset_dir = opt.dataset_dir or Path("dataset/individuals" if opt.individuals else "dataset/miniworld")
    bench = opt.bench or Path("test_bench_individuals" if opt.individuals else "test_bench_mini")
    world = Individuals(opt.seed) if opt.individuals else DEFAULT_WORLD
    size = (opt.height * 4 // 3, opt.height)
    counts = {split: getattr(opt, split) for split in SPLITS}
    for split, objects in write_world(dataset_dir, counts, size, opt.seed, world).items():
        print(f"{dataset_dir}: {split}, {counts[split]:,} scenes, {objects:,} objects")
    write_bench(bench, opt.cases, opt.real, opt.side, size, opt.seed, world)
    print(f"{bench}: {opt.cases:,} cases, {opt.real:,} real pictures")
