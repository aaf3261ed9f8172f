"""The mixture of Gaussians that QS asks how likely a picture is.

    python scripts/fit_quality_gmm.py --images test_bench/test2017_square
    python scripts/fit_quality_gmm.py --pickle coco2017_gmm_k20

The first fits one to the CLIP features of a folder of real pictures; the second takes over the published one, a pickled
scikit-learn object, without running code of the file. Either writes --output, an npz of numbers alone."""

import argparse
from pathlib import Path

from ldm.cli.command import command
from ldm.util import UserError


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="a folder of real pictures, of any size; the more the better")
    source.add_argument("--pickle", type=Path, help="the published mixture")
    p.add_argument("--output", type=Path, help="(quality_gmm.npz beside the folder of pictures, or in test_bench)")
    p.add_argument("--components", type=int, default=20, help="Gaussians (20)")
    p.add_argument("--seed", type=int, default=0, help="of the first guess (0)")
    p.add_argument("--clip_weights", help="a file of OpenAI's CLIP ViT-B/32 (default: fetched)")
    p.add_argument("--clip_model", help="another architecture, by open_clip's name")
    p.add_argument("--batch_size", type=int, default=32, help="pictures at once (32)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest there is)")
    opt = p.parse_args()
    for name, least, most in (("components", 1, 1000), ("batch_size", 1, 1000), ("seed", 0, 2**32 - 1)):
        if not least <= getattr(opt, name) <= most:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use {least} to {most}")
    folder = opt.images.resolve().parent if opt.images else Path("test_bench")
    output = opt.output or folder / "quality_gmm.npz"
    if output.suffix != ".npz":
        raise UserError(f"--output {output}: has to end in .npz")

    import numpy as np

    from ldm.editing.checks import pick_device
    from ldm.evaluation.features import CLIP, load_clip
    from ldm.evaluation.folder import features_of
    from ldm.evaluation.quality import Mixture
    from ldm.images import pictures_below

    if opt.pickle:
        mixture = Mixture.from_pickle(opt.pickle)
    else:
        paths = pictures_below(opt.images)
        if len(paths) < opt.components:
            raise UserError(f"--images {opt.images}: {len(paths)} pictures are too few for {opt.components} components")
        clip = load_clip(opt.clip_weights, pick_device(opt.device), opt.clip_model or CLIP)
        if len(paths) < 100 * opt.components:
            print(
                f"warning: {len(paths)} pictures are few for {opt.components} Gaussians; QS will say little", flush=True
            )
        features = np.concatenate(list(features_of(paths, clip, opt.batch_size, "pictures")))
        print(
            f"fitting {opt.components} Gaussians to {len(features):,} features of {features.shape[1]} numbers",
            flush=True,
        )
        mixture = Mixture.fit(features, opt.components, opt.seed, clip.identity)
    mixture.write(output)
    k, d = mixture.means.shape
    print(f"wrote {output}: {k} Gaussians in {d} dimensions")


if __name__ == "__main__":
    main()
