"""Give a Stable Diffusion model 9 input channels, the new ones with zero weights, so that training starts from the
prior (Yang et al. 2022, section 3.1):

    paint-by-example modify
    paint-by-example modify --input sd-v1-4/ --output sd-9channel.safetensors

Or add what a fine-tuned model learned to an inpainting model, A + (B - C):

    paint-by-example modify --add_difference --a model.ckpt --b fine-tuned.ckpt --c sd-v1-4.ckpt \\
        --output fine-tuned-by-example.safetensors

Each file can be a .ckpt, a .safetensors or a diffusers folder. scripts/modify_checkpoints.py is the same command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser
from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

INPUT = "pretrained_models/sd-v1-4.ckpt"
OUTPUT = "pretrained_models/sd-v1-4-modified-9channel.ckpt"


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--input", help=f"the model with 4 input channels ({INPUT})")
    p.add_argument("--output", help=f"where to write the result ({OUTPUT})")
    p.add_argument("--ema", action="store_true", help="use the averaged weights, if --input has them")
    p.add_argument("--config", help="the model's config, for an --output in diffusers' layout (configs/v1.yaml)")
    p.add_argument("--add_difference", action="store_true", help="write A + (B - C) instead")
    p.add_argument("--a", help="the inpainting model A, for instance checkpoints/model.ckpt")
    p.add_argument("--b", help="the fine-tuned Stable Diffusion v1 model B")
    p.add_argument("--c", help="the model C that B was fine-tuned from")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    models = [opt.a, opt.b, opt.c]
    if opt.add_difference and not all([*models, opt.output]):
        raise UserError("--add_difference needs --a, --b, --c and --output: name the three models and the result")
    if opt.add_difference and (opt.input or opt.ema):
        raise UserError("--input and --ema have no effect with --add_difference: leave them out")
    if any(models) and not opt.add_difference:
        raise UserError("--a, --b and --c need --add_difference: add it, or leave them out")

    from ldm.checkpoint import read_checkpoint
    from ldm.checkpoint.complete import require_complete
    from ldm.checkpoint.load import write_checkpoint
    from ldm.checkpoint.locate import DEFAULT_CONFIG, ROOT
    from ldm.checkpoint.surgery import add_difference, widen
    from ldm.files import check_name

    def read_whole(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
        tensors = read_checkpoint(path, ema)
        require_complete(tensors, path)
        return tensors

    output = opt.output or ROOT / OUTPUT
    check_name(output, "--output")
    if opt.add_difference:
        tensors = add_difference(*map(read_whole, models))
    else:
        tensors = widen(read_whole(opt.input or ROOT / INPUT, opt.ema))
    write_checkpoint(tensors, output, opt.config or DEFAULT_CONFIG)
    print(f"wrote {output}")
