"""Train Paint by Example.

    python main.py --base configs/v1.yaml --gpus 0,1,2,3,4,5,6,7
    python main.py --base configs/v1.yaml --gpus 0,1,...,63 --num_nodes 8     # on each node; see docs/training.md
    python main.py -r logs/2026-11-21T10-00-00_v1                             # go on with a run

Configs merge from left to right; then come key=value arguments, such as model.base_learning_rate=2e-5; then flags."""

import argparse
import datetime
import inspect
import os
import sys
import traceback
from pathlib import Path

import pytorch_lightning as lightning
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.cli.command import command
from ldm.data.datamodule import DataModuleFromConfig  # noqa: F401  configs name it main.DataModuleFromConfig
from ldm.training.checkpoints import LAST
from ldm.training.run import DEFAULTS, train
from ldm.util import UserError, load_config

TRAINER_HELP = {  # the flags of Lightning's Trainer that most runs need; it takes its others, too
    "accelerator": "cpu, gpu, mps, auto",
    "devices": "how many, or which, on each node",
    "num_nodes": "machines",
    "precision": "32-true (the default), bf16-mixed, 16-mixed",
    "strategy": "ddp (the default for several devices), fsdp, ...",
    "max_steps": "stop after so many optimizer steps",
    "max_epochs": "stop after so many epochs",
    "accumulate_grad_batches": "batches per optimizer step",
    "gradient_clip_val": "largest norm of the gradient",
    "val_check_interval": "validate after this share of an epoch, or after so many batches",
    "limit_val_batches": "batches in a validation",
    "log_every_n_steps": "steps between two lines of the logs",
}
PARTS = ("model", "data", "lightning")  # of a config
RUN = "PAINT_BY_EXAMPLE_RUN"  # tells the processes that Lightning starts which folder is the run's


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("overrides", nargs="*", metavar="key=value", help="what is to differ from the configs")
    p.add_argument("-b", "--base", nargs="*", default=[], type=Path, metavar="YAML", help="configs, left to right")
    p.add_argument("-n", "--name", help="of the run (the first config's)")
    p.add_argument("-f", "--postfix", default="", help="appended to the name")
    p.add_argument("-l", "--logdir", type=Path, default="logs", help="where runs go (logs)")
    p.add_argument("-r", "--resume", type=Path, help="a run's folder, or a checkpoint in it, to go on from, exactly")
    p.add_argument("-p", "--project", type=Path, help="a folder for the run, instead of <logdir>/<date>_<name>")
    p.add_argument("-s", "--seed", type=int, help="of data order, augmentation, noise (23)")
    p.add_argument(
        "-t", "--train", nargs="?", const=True, help="as published, without effect: training is what it does"
    )
    p.add_argument("--no-test", action="store_true", help="no loss over the test split at the end")
    p.add_argument("-d", "--debug", action="store_true", help="on an error, start the debugger where it happened")
    p.add_argument("--pretrained_model", help="what to start from; none: random weights")
    p.add_argument("--gpus", help="the GPUs of all nodes together: 0,1,2,3 or 0,1,...,63")
    p.add_argument("--scale_lr", action="store_true", help="learning rate x devices x batch size x accumulation")
    p.add_argument("--nonfinite", choices=["stop", "skip"], help="what a loss that is not finite does (stop)")
    p.add_argument("--compile", action="store_true", help="compile the networks: minutes at first, then faster steps")
    p.add_argument("--wandb", action="store_true", help="log to Weights & Biases too, if it is installed")
    group = p.add_argument_group("Lightning's Trainer, among others")
    for name in inspect.signature(lightning.Trainer).parameters:
        shown = {"help": TRAINER_HELP[name], "metavar": "X"} if name in TRAINER_HELP else {"help": argparse.SUPPRESS}
        group.add_argument(f"--{name}", type=yaml.safe_load, default=argparse.SUPPRESS, **shown)
    return p


def merged(opt: argparse.Namespace, base: list[Path]) -> DictConfig:
    """Defaults, configs, key=value, flags: the later one wins. Raises UserError."""
    try:
        parts = [OmegaConf.load(path) for path in base]
        config = load_config(OmegaConf.merge({"lightning": DEFAULTS}, *parts, OmegaConf.from_dotlist(opt.overrides)))
        names = inspect.signature(lightning.Trainer).parameters
        flags = {name: getattr(opt, name) for name in names if hasattr(opt, name)}  # null is a value, too
        if opt.gpus is not None:
            flags["gpus"] = opt.gpus
        if "data" not in config:
            raise UserError(f"config {base[0]}: has no 'data' to train on; see configs/v1.yaml")
        trainer = config["lightning"]["trainer"]
        if "gpus" in flags:
            if flags.get("accelerator") == "cpu" or "devices" in flags:
                raise UserError(
                    f"--gpus {opt.gpus}: does not go with --devices or --accelerator cpu; leave one of them out"
                )
            for name in ("devices", "accelerator"):
                trainer.pop(name, None)
        elif not {"devices", "accelerator"}.isdisjoint(flags):
            trainer.pop("gpus", None)
        config["lightning"]["trainer"].update(flags)
        if opt.nonfinite:
            config["lightning"]["nonfinite"] = opt.nonfinite
        for name in ("scale_lr", "compile"):
            if getattr(opt, name):
                config["lightning"][name] = True
        OmegaConf.resolve(config)
        return config
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError, ValueError) as error:
        raise UserError(f"config: {error}; correct the files of --base, or the key=value") from error


def resumed(path: Path) -> tuple[Path, Path]:
    """A run's folder or a checkpoint in it -> (folder, checkpoint)."""
    folder = path if path.is_dir() else path.parent.parent
    checkpoint = path / "checkpoints" / LAST if path.is_dir() else path
    for needed in (checkpoint, folder / "config.yaml"):
        if not needed.is_file():
            raise UserError(f"--resume {path}: there is no {needed}; name the folder of a run that wrote a checkpoint")
    return folder, checkpoint


@command
def main() -> None:
    opt = parser().parse_intermixed_args()
    opt.overrides += [str(word) for word in opt.base if "=" in str(word)]  # --base takes what follows it
    opt.base = [path for path in opt.base if "=" not in str(path)]
    if not (opt.base or opt.resume):
        raise UserError("name a config, --base configs/v1.yaml, or a run to go on with, -r logs/...")
    for word in opt.overrides:
        if "=" not in word:
            raise UserError(f"{word}: is no flag and no key=value; see python main.py --help")
        if word.split("=")[0].split(".")[0] not in PARTS:
            raise UserError(f"{word}: changes none of {', '.join(PARTS)}; name one of their keys, or use a flag")
    checkpoint = None
    if opt.resume:
        folder, checkpoint = resumed(opt.resume)
        opt.base.insert(0, folder / "config.yaml")
    else:
        now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        name = f"{now}_{opt.name or opt.base[0].stem}{opt.postfix}"
        folder = Path(os.environ.setdefault(RUN, str(opt.project or opt.logdir / name)))
        if (folder / "checkpoints" / LAST).exists():
            raise UserError(f"{folder}: holds a run already; go on with it, -r {folder}, or name another folder")
    config = merged(opt, opt.base)
    try:
        train(
            config,
            folder,
            resume=checkpoint,
            pretrained=opt.pretrained_model,
            seed=opt.seed,
            test=not opt.no_test,
            wandb=opt.wandb,
        )
    except Exception:
        if opt.debug:
            import pdb

            traceback.print_exc()
            pdb.post_mortem(sys.exc_info()[2])
        raise


if __name__ == "__main__":
    main()
