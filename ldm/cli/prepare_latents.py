"""Encode training samples once, for many epochs: training then runs the UNet and the mapper alone.

    paint-by-example prepare-latents --base configs/v1.yaml --epochs 4
    paint-by-example train --base configs/v1.yaml configs/latents.yaml

Draws each training picture --epochs times, with the config's recipe, and keeps what the autoencoder and CLIP make of it
in <dataset_dir>/latents. Later epochs show the same draws again, with new noise. After an interruption, run it again.
scripts/prepare_latents.py is the same command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldm.cli.command import command, command_parser
from ldm.cli.flags import check_range
from ldm.cli.train import merge_configs, separate_words


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configs")
    p.add_argument("-b", "--base", nargs="+", required=True, metavar="YAML", help="configs, left to right")
    p.add_argument("--epochs", type=int, default=4, help="draws of each picture (%(default)s)")
    p.add_argument("--pretrained_model", help="checkpoint with the autoencoder and CLIP (the config's)")
    p.add_argument("--device", help="cpu, cuda, mps (the best there is)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_intermixed_args(argv)
    separate_words(opt)
    check_range(opt, "epochs", 1, 10**6)
    config = merge_configs(opt.base, opt.overrides)
    from ldm.editing.checks import pick_device
    from ldm.training.latents import prepare_latents

    print(f"wrote {prepare_latents(config, opt.epochs, opt.pretrained_model, pick_device(opt.device))}")
