"""Convert a checkpoint to .safetensors, .ckpt or a diffusers folder, from any of these. Only the weights are kept, not
optimizer states and the like.

    paint-by-example convert checkpoints/model.ckpt checkpoints/model.safetensors --half
    paint-by-example convert checkpoints/model.safetensors checkpoints/paint-by-example-diffusers --to diffusers
    paint-by-example convert checkpoints/model.ckpt checkpoints/mine.safetensors --lora lora.safetensors

scripts/convert_checkpoint.py is the same command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ldm.cli.command import command, command_parser
from ldm.cli.flags import add_adapters
from ldm.util import UserError


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("input", help="a .ckpt, .safetensors or diffusers folder")
    p.add_argument("output", help="*.safetensors, *.ckpt, or a new folder for diffusers' layout")
    p.add_argument("--to", choices=["diffusers"], help="write a diffusers folder, whatever the output's name ends in")
    p.add_argument("--half", action="store_true", help="write float16 weights, half the size")
    p.add_argument("--ema", action="store_true", help="use the averaged weights, if the input has them")
    add_adapters(p)
    p.add_argument("--config", help="the model's config, for an output in diffusers' layout (configs/v1.yaml)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)

    from ldm.checkpoint import read_checkpoint
    from ldm.checkpoint.adapters import DELTA, SINGULAR, in_list, merge, read_stack
    from ldm.checkpoint.complete import is_part_of_a_model, require_complete
    from ldm.checkpoint.load import write_checkpoint
    from ldm.checkpoint.locate import DEFAULT_CONFIG
    from ldm.checkpoint.surgery import halve
    from ldm.files import check_name

    check_name(opt.output, "output")
    for path in (opt.input, *in_list(opt.lora)):
        if os.path.exists(path) and os.path.exists(opt.output) and os.path.samefile(path, opt.output):
            raise UserError(f"{opt.output} is the input itself and would be lost: name another output")
    adapters = read_stack(opt.lora, opt.lora_scale)
    tensors = read_checkpoint(opt.input, opt.ema)
    if any(".lora_A." in name or name.endswith((DELTA, SINGULAR)) for name in tensors):
        raise UserError(
            f"{opt.input} is an adapter, not a model: give the model that it was trained from, and the adapter, "
            "lora.safetensors, with --lora"
        )
    if is_part_of_a_model(tensors) or opt.to or opt.lora:  # else another network, such as the small world's oracle
        require_complete(tensors, opt.input)
    tensors |= merge(tensors, adapters)
    write_checkpoint(halve(tensors) if opt.half else tensors, opt.output, opt.config or DEFAULT_CONFIG, opt.to)
    print(f"wrote {opt.output}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
