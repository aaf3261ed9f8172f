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
from ldm.util import UserError


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("input", help="a .ckpt, .safetensors or diffusers folder")
    p.add_argument("output", help="*.safetensors, *.ckpt, or a new folder for diffusers' layout")
    p.add_argument("--to", choices=["diffusers"], help="write a diffusers folder, whatever the output's name ends in")
    p.add_argument("--half", action="store_true", help="write float16 weights, half the size")
    p.add_argument("--ema", action="store_true", help="use the averaged weights, if the input has them")
    p.add_argument("--lora", help="an adapter from fine-tuning, lora.safetensors, to merge into the weights")
    p.add_argument("--lora_scale", type=float, default=1.0, help="strength of the adapter: 0 none, 1 as trained (1)")
    p.add_argument("--config", help="the model's config, for an output in diffusers' layout (configs/v1.yaml)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)

    from ldm.checkpoint import read_checkpoint
    from ldm.checkpoint.complete import is_part_of_a_model, require_complete
    from ldm.checkpoint.load import write_checkpoint
    from ldm.checkpoint.locate import DEFAULT_CONFIG
    from ldm.checkpoint.lora import merge, read_adapter
    from ldm.checkpoint.surgery import halve
    from ldm.files import check_name

    check_name(opt.output, "output")
    for path in filter(None, (opt.input, opt.lora)):
        if os.path.exists(path) and os.path.exists(opt.output) and os.path.samefile(path, opt.output):
            raise UserError(f"{opt.output} is the input itself and would be lost: name another output")
    adapter = read_adapter(opt.lora) if opt.lora else None
    tensors = read_checkpoint(opt.input, opt.ema)
    if any(".lora_A." in name for name in tensors):
        raise UserError(
            f"{opt.input} is an adapter, not a model: give the model that it was trained from, and the adapter, "
            "lora.safetensors, with --lora"
        )
    if is_part_of_a_model(tensors) or opt.to or opt.lora:  # else another network, such as the small world's oracle
        require_complete(tensors, opt.input)
    if adapter:
        tensors |= merge(tensors, adapter, opt.lora_scale)
    write_checkpoint(halve(tensors) if opt.half else tensors, opt.output, opt.config or DEFAULT_CONFIG, opt.to)
    print(f"wrote {opt.output}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
