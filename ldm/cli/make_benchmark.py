"""Make a benchmark from your own pictures, laid out like COCOEE: photos, each with a region and a reference.

    paint-by-example prepare --format coco --images photos --annotations photos.json --dataset_dir dataset/mine
    paint-by-example make-benchmark --dataset_dir dataset/mine --outdir test_bench_mine

The region is a box around an object; the reference is an object with the same label on another picture, so the boxes
need labels. cases.csv lists the pictures and boxes of each case. The same seed makes the same benchmark.
scripts/make_test_bench.py is the same command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range


def parser() -> argparse.ArgumentParser:
    from ldm.data.index import SPLITS

    p = command_parser(__doc__)
    p.add_argument("--dataset_dir", type=Path, required=True, help="folder that read_bbox.py prepared")
    p.add_argument("--split", choices=SPLITS, default="validation", help="whose pictures to use (%(default)s)")
    p.add_argument("--outdir", type=Path, default=Path("test_bench_mine"), help="a new folder (%(default)s)")
    p.add_argument("--count", type=int, default=3500, help="maximum number of cases, one per picture (3500)")
    p.add_argument("--size", type=int, default=512, help="side of a photo, in pixels (512)")
    p.add_argument("--seed", type=int, default=321, help="of the choice of pictures, boxes and references (321)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "count", 1, 10**6)
    check_range(opt, "size", 8, 4096)
    check_range(opt, "seed", 0, 2**63 - 1)
    from ldm.data.bench.make import Instances, make_bench

    instances = Instances(opt.dataset_dir, opt.split)
    summary = make_bench(instances, opt.dataset_dir, opt.outdir, opt.count, opt.size, opt.seed)
    print(f"{opt.outdir}: {summary.cases:,} cases, from {len(instances):,} pictures")
    for reason, number in summary.left_out.items():
        print(f"left out: {number:,} {reason}")
    if summary.unreadable:
        print(f"{len(summary.unreadable):,} files cannot be read:", *summary.unreadable, sep="\n", file=sys.stderr)
