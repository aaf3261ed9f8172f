"""Make a 9-channel model of a 4-channel Stable Diffusion one: zeros for the new input channels, so that training starts
from the prior (Yang et al. 2022, section 3.1).

    python scripts/modify_checkpoints.py
    python scripts/modify_checkpoints.py --input sd-v1-4/ --output sd-9channel.safetensors

Or give what a fine-tuned model learned to an inpainting model, A + (B - C):

    python scripts/modify_checkpoints.py --add_difference --a model.ckpt --b fine-tuned.ckpt --c sd-v1-4.ckpt \\
        --output fine-tuned-by-example.safetensors

Files: .ckpt, .safetensors, or a diffusers folder, in any combination."""

import argparse

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.checkpoint.locate import DEFAULT_CONFIG, ROOT
from ldm.checkpoint.surgery import add_difference, widen
from ldm.cli.command import command
from ldm.util import UserError


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--input", help="the 4-channel model (pretrained_models/sd-v1-4.ckpt)")
    p.add_argument("--output", help="where to (pretrained_models/sd-v1-4-modified-9channel.ckpt)")
    p.add_argument("--ema", action="store_true", help="take the averaged weights, if --input has them")
    p.add_argument("--config", default=DEFAULT_CONFIG, help="for an --output in diffusers' layout (configs/v1.yaml)")
    p.add_argument("--add_difference", action="store_true", help="write A + (B - C) instead")
    p.add_argument("--a", help="the inpainting model A, for instance checkpoints/model.ckpt")
    p.add_argument("--b", help="the fine-tuned Stable Diffusion v1 model B")
    p.add_argument("--c", help="the model C that B was fine-tuned from")
    opt = p.parse_args()
    three = [opt.a, opt.b, opt.c]
    if opt.add_difference:
        if not all([*three, opt.output]):
            raise UserError("--add_difference needs --a, --b, --c and --output; name the three models and the result")
        if opt.input or opt.ema:
            raise UserError("--input and --ema do not go with --add_difference; leave them out")
        tensors = add_difference(*map(read_checkpoint, three))
    else:
        if any(three):
            raise UserError("--a, --b and --c go with --add_difference; add it, or leave them out")
        tensors = widen(read_checkpoint(opt.input or ROOT / "pretrained_models/sd-v1-4.ckpt", opt.ema))
    output = opt.output or ROOT / "pretrained_models/sd-v1-4-modified-9channel.ckpt"
    write_checkpoint(tensors, output, opt.config)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
