"""Training: python main.py --base configs/v1.yaml --gpus 0,1,2,3

Training is not in this version yet; the configs are read and checked."""

import argparse

from omegaconf import OmegaConf

from ldm.checkpoint import empty_model
from ldm.util import UserError, command, load_config


@command
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-b", "--base", nargs="+", required=True, help="configs, merged from left to right")
    opt, _ = p.parse_known_args()
    model = empty_model(OmegaConf.merge(*(load_config(path) for path in opt.base)))
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    raise UserError(f"the config is good ({count:,} trainable parameters), but this version cannot train yet")


if __name__ == "__main__":
    main()
