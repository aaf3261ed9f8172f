"""Convert a checkpoint: .ckpt, .safetensors and diffusers folders, any to any, weights only (optimizer state and the
like are dropped).

    python scripts/convert_checkpoint.py checkpoints/model.ckpt checkpoints/model.safetensors --half
    python scripts/convert_checkpoint.py checkpoints/model.safetensors checkpoints/paint-by-example-diffusers
    python scripts/convert_checkpoint.py checkpoints/model.ckpt checkpoints/mine.safetensors --lora lora.safetensors"""

import argparse
import os

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.checkpoint.locate import DEFAULT_CONFIG
from ldm.checkpoint.lora import merge, read_adapter
from ldm.checkpoint.surgery import halve
from ldm.cli.command import command
from ldm.util import UserError


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("input", help="a .ckpt, .safetensors or diffusers folder")
    p.add_argument("output", help="*.safetensors, *.ckpt, or a new folder for diffusers' layout")
    p.add_argument("--half", action="store_true", help="float16 weights, half the size")
    p.add_argument("--ema", action="store_true", help="take the averaged weights, if the input has them")
    p.add_argument("--lora", help="an adapter, lora.safetensors, that fine-tuning wrote, to merge into the weights")
    p.add_argument("--lora_scale", type=float, default=1.0, help="how much of it: 0 none, 1 as it was trained (1)")
    p.add_argument("--config", default=DEFAULT_CONFIG, help="for an output in diffusers' layout (configs/v1.yaml)")
    opt = p.parse_args()
    for given in filter(None, (opt.input, opt.lora)):
        if os.path.exists(given) and os.path.exists(opt.output) and os.path.samefile(given, opt.output):
            raise UserError(f"{opt.output}: is the input itself, which would be lost; name another output")
    adapter = read_adapter(opt.lora) if opt.lora else None
    tensors = read_checkpoint(opt.input, opt.ema)
    if any(".lora_A." in name for name in tensors):
        raise UserError(
            f"{opt.input}: holds an adapter and no model; give the model that it was trained from, and the adapter, "
            "lora.safetensors, with --lora"
        )
    if adapter:
        tensors |= merge(tensors, adapter, opt.lora_scale)
    write_checkpoint(halve(tensors) if opt.half else tensors, opt.output, opt.config)
    print(f"wrote {opt.output}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")


if __name__ == "__main__":
    main()
