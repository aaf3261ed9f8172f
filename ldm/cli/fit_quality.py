"""Fit the mixture of Gaussians of the quality score (QS) to real pictures, or convert the published one.

    paint-by-example fit-quality --images test_bench/test2017_square
    paint-by-example fit-quality --pickle coco2017_gmm_k20

The first fits it to the CLIP features of a folder of real pictures; the second reads a pickled scikit-learn object,
without running code from it. Both write --output, an npz file of numbers. scripts/fit_quality_gmm.py is the same
command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.evaluation.quality import Mixture


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder of real pictures of any size; more are better")
    source.add_argument("--pickle", type=Path, help="the published mixture")
    p.add_argument(
        "--output", type=Path, help="(default: quality_gmm.npz, beside the folder of pictures or in test_bench)"
    )
    p.add_argument("--components", type=int, default=20, help="number of Gaussians (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the initial guess (%(default)s)")
    p.add_argument("--clip_weights", help="a file of OpenAI's CLIP ViT-B/32 (default: downloaded)")
    p.add_argument("--clip_model", help="another architecture, by open_clip's name")
    p.add_argument("--batch_size", type=int, default=32, help="pictures per batch (%(default)s)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest available)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "components", 1, 1000)
    check_range(opt, "batch_size", 1, 1000)
    check_range(opt, "seed", 0, 2**32 - 1)
    folder = opt.images.resolve().parent if opt.images else Path("test_bench")
    output = opt.output or folder / "quality_gmm.npz"
    if output.suffix != ".npz":
        raise UserError(f"--output {output} does not end in .npz: change its suffix")

    from ldm.evaluation.quality import Mixture

    mixture = Mixture.from_pickle(opt.pickle) if opt.pickle else fit(opt)
    mixture.write(output)
    k, d = mixture.means.shape
    print(f"wrote {output}: {k} Gaussians in {d} dimensions")


def fit(opt: argparse.Namespace) -> Mixture:
    """Fits a mixture to CLIP's features of --images. Raises UserError: fewer pictures than Gaussians."""
    import numpy as np

    from ldm.editing.checks import pick_device
    from ldm.evaluation.features import CLIP, load_clip
    from ldm.evaluation.folder import features_of
    from ldm.evaluation.quality import Mixture
    from ldm.images import pictures_below

    found = pictures_below(opt.images)
    paths = found.files
    print(found.summary("pictures"), flush=True)
    if len(paths) < opt.components:
        raise UserError(
            f"--images {opt.images} has {len(paths)} pictures, too few for {opt.components} components: add pictures, "
            "or lower --components"
        )
    clip = load_clip(opt.clip_weights, pick_device(opt.device), opt.clip_model or CLIP)
    if len(paths) < 100 * opt.components:
        print(
            f"warning: {len(paths)} pictures are few for {opt.components} Gaussians; QS will be unreliable", flush=True
        )
    features = np.concatenate(list(features_of(paths, clip, opt.batch_size, "pictures")))
    print(
        f"fitting {opt.components} Gaussians to {len(features):,} features of {features.shape[1]} numbers", flush=True
    )
    return Mixture.fit(features, opt.components, opt.seed, clip.identity)
