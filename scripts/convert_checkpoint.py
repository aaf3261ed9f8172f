"""Convert a checkpoint: .ckpt, .safetensors and diffusers folders, any to any, weights only (optimizer state and the
like are dropped).

    python scripts/convert_checkpoint.py checkpoints/model.ckpt checkpoints/model.safetensors --half
    python scripts/convert_checkpoint.py checkpoints/model.safetensors checkpoints/paint-by-example-diffusers"""

import argparse
import os

from ldm.checkpoint import DEFAULT_CONFIG, halve, read_checkpoint, write_checkpoint
from ldm.util import UserError, command


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("input", help="a .ckpt, .safetensors or diffusers folder")
    p.add_argument("output", help="*.safetensors, *.ckpt, or a new folder for diffusers' layout")
    p.add_argument("--half", action="store_true", help="float16 weights, half the size")
    p.add_argument("--ema", action="store_true", help="take the averaged weights, if the input has them")
    p.add_argument("--config", default=DEFAULT_CONFIG, help="for an output in diffusers' layout (configs/v1.yaml)")
    opt = p.parse_args()
    if os.path.exists(opt.output) and os.path.samefile(opt.input, opt.output):
        raise UserError(f"{opt.output}: is the input itself, which would be lost; name another output")
    tensors = read_checkpoint(opt.input, opt.ema)
    write_checkpoint(halve(tensors) if opt.half else tensors, opt.output, opt.config)
    print(f"wrote {opt.output}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")


if __name__ == "__main__":
    main()
