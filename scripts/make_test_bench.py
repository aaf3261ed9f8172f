"""A benchmark of your own pictures, laid out as COCOEE is: photos, a region of each, and what to paint there.

    python scripts/read_bbox.py --format coco --images photos --annotations photos.json --dataset_dir dataset/mine
    python scripts/make_test_bench.py --dataset_dir dataset/mine --outdir test_bench_mine

The region is a box around an object; the reference is an object of the same label on another picture. The boxes need
labels. cases.csv says what each case was made of. The same seed makes the same benchmark."""

import argparse
import sys
from pathlib import Path

from ldm.cli.command import command
from ldm.data.bench.make import Instances, make_bench
from ldm.data.index import SPLITS
from ldm.util import UserError


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset_dir", type=Path, required=True, help="what read_bbox.py prepared")
    p.add_argument("--split", choices=SPLITS, default="validation", help="of its pictures (%(default)s)")
    p.add_argument("--outdir", type=Path, default=Path("test_bench_mine"), help="a new folder (%(default)s)")
    p.add_argument("--count", type=int, default=3500, help="cases at most, one per picture (3500)")
    p.add_argument("--size", type=int, default=512, help="of a photo's side, in pixels (512)")
    p.add_argument("--seed", type=int, default=321)
    opt = p.parse_args()
    for name, least, most in (("count", 1, 10**6), ("size", 8, 4096), ("seed", 0, 2**63 - 1)):
        if not least <= getattr(opt, name) <= most:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use {least} to {most}")
    instances = Instances(opt.dataset_dir, opt.split)
    made = make_bench(instances, opt.dataset_dir, opt.outdir, opt.count, opt.size, opt.seed)
    print(f"{opt.outdir}: {made.cases:,} cases, from {len(instances):,} pictures")
    for reason, number in made.left_out.items():
        print(f"left out: {number:,} {reason}")
    if made.unreadable:
        print(f"{len(made.unreadable):,} files cannot be read:", *made.unreadable, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
