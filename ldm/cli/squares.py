"""Cut the central square of each picture in a folder and save it as PNG: the real pictures that FID compares with.

    paint-by-example squares --images coco/test2017 --outdir test_bench/test2017_square

Reads subfolders, too. After an interruption, run it again: finished squares are kept.
scripts/create_square_gt_for_fid.py is the same command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    p.add_argument("--outdir", type=Path, required=True, help="folder for the squares")
    p.add_argument("--size", type=int, default=512, help="side of a square, in pixels (512)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "size", 8, 4096)
    from ldm.data.bench.squares import square_folder

    count, problems = square_folder(opt.images, opt.outdir, opt.size)
    print(f"{opt.outdir}: {count:,} squares")
    if problems:
        print(f"{len(problems):,} pictures cannot be read:", *problems, sep="\n", file=sys.stderr)
