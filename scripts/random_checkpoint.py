"""Write a checkpoint of random weights for a config: to try commands and to measure speed without the real ones.

    python scripts/random_checkpoint.py configs/tiny.yaml /tmp/tiny.ckpt
    python scripts/random_checkpoint.py configs/v1.yaml /tmp/full.ckpt      # 5.2 GB, as the released file

What is edited with it is noise."""

import argparse

import torch

from ldm.checkpoint.load import write_checkpoint
from ldm.cli.command import command
from ldm.util import instantiate_from_config, load_config


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("config", help="for instance configs/tiny.yaml")
    p.add_argument("output", help="*.ckpt, *.safetensors, or a new folder for diffusers' layout")
    p.add_argument("--seed", type=int, default=0, help="of the random weights (0)")
    opt = p.parse_args()
    torch.manual_seed(opt.seed)
    model = instantiate_from_config(load_config(opt.config)["model"])
    for parameter in model.parameters():
        if not parameter.any():  # what starts as zero would hide most of the network
            torch.nn.init.normal_(parameter, std=0.02)
    write_checkpoint(model.state_dict(), opt.output, opt.config)
    print(f"wrote {opt.output}: random weights")


if __name__ == "__main__":
    main()
