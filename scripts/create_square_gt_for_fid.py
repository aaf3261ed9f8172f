"""Squares of real pictures, with which FID compares results: the central square of each, resized, as PNG.

    python scripts/create_square_gt_for_fid.py --images coco/test2017 --outdir test_bench/test2017_square

Any folder of pictures does, with its subfolders. Stopped, it goes on where it was when it is run again."""

import argparse
import sys
from pathlib import Path

from ldm.cli.command import command
from ldm.data.bench.squares import square_folder
from ldm.util import UserError


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    p.add_argument("--outdir", type=Path, required=True, help="folder for the squares")
    p.add_argument("--size", type=int, default=512, help="of a square's side, in pixels (512)")
    opt = p.parse_args()
    if not 8 <= opt.size <= 4096:
        raise UserError(f"--size {opt.size} is out of range; use 8 to 4096")
    made, problems = square_folder(opt.images, opt.outdir, opt.size)
    print(f"{opt.outdir}: {made:,} squares")
    if problems:
        print(f"{len(problems):,} pictures cannot be read:", *problems, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
