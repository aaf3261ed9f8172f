"""Write a checkpoint of random weights for a config, to try commands and to measure speed without the real ones.

    python scripts/random_checkpoint.py configs/tiny.yaml /tmp/tiny.ckpt
    python scripts/random_checkpoint.py configs/v1.yaml /tmp/full.ckpt      # 5.2 GB, as the released file

Edits with it are noise."""

from ldm.checkpoint.load import random_model, write_checkpoint
from ldm.cli.command import command, command_parser


@command
def main() -> None:
    p = command_parser(__doc__)
    p.add_argument("config", help="for instance configs/tiny.yaml")
    p.add_argument("output", help="*.ckpt, *.safetensors, or a new folder for diffusers' layout")
    p.add_argument("--seed", type=int, default=0, help="of the random weights (0)")
    opt = p.parse_args()
    model = random_model(opt.config, seed=opt.seed)
    write_checkpoint(model.state_dict(), opt.output, opt.config)
    print(f"wrote {opt.output}: random weights")


if __name__ == "__main__":
    main()
