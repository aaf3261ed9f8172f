"""Train Paint by Example.

    paint-by-example train --base configs/v1.yaml --gpus 0,1,2,3,4,5,6,7
    paint-by-example train --base configs/v1.yaml --gpus 0,1,...,63 --num_nodes 8  # on each node; see docs/training.md
    paint-by-example train -r logs/2026-11-21T10-00-00_v1                          # resume a run

Configs are merged from left to right; then key=value arguments, such as model.base_learning_rate=2e-5; then flags.
main.py is the same command."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ldm.cli.command import command, command_parser
from ldm.cli.values import override, read_value, trainer_kinds
from ldm.files import check_name
from ldm.storage import is_url, place
from ldm.util import UserError, load_config, read_yaml

if TYPE_CHECKING:
    from omegaconf import DictConfig

TRAINER_FLAGS = {  # the flags of Lightning's Trainer that --help shows
    "accelerator": "cpu, gpu, mps, auto",
    "devices": "how many, or which, on each node",
    "num_nodes": "number of machines",
    "precision": "32-true (default), bf16-mixed, 16-mixed",
    "strategy": "ddp (default for several devices), fsdp, ...",
    "max_steps": "stop after this many optimizer steps",
    "max_epochs": "stop after this many epochs",
    "accumulate_grad_batches": "batches per optimizer step",
    "gradient_clip_val": "largest norm of the gradient",
    "val_check_interval": "validate after this share of an epoch, or this number of batches",
    "limit_val_batches": "batches per validation",
    "log_every_n_steps": "steps between two lines of the logs",
}
SECTIONS = ("model", "data", "lightning")  # of a config
RUN_VARIABLE = "PAINT_BY_EXAMPLE_RUN"  # tells the processes that Lightning starts the name of the run's folder


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configs")
    p.add_argument("-b", "--base", nargs="*", default=[], metavar="YAML", help="configs, from left to right")
    p.add_argument("-n", "--name", help="name of the run (default: that of the first config)")
    p.add_argument("-f", "--postfix", default="", help="appended to the name")
    p.add_argument("-l", "--logdir", type=place, default="logs", help="folder for all runs (%(default)s)")
    p.add_argument("-r", "--resume", type=Path, help="resume this run, exactly: its folder, or a checkpoint in it")
    p.add_argument("-p", "--project", type=place, help="folder for this run (default: <logdir>/<date>_<name>)")
    p.add_argument("-s", "--seed", type=int, help="of data order, augmentation and noise (23)")
    p.add_argument(
        "-t", "--train", nargs="?", const=True, help="accepted because the published command has it; no effect"
    )
    p.add_argument("--no-test", action="store_true", help="skip the loss over the test split at the end")
    p.add_argument("-d", "--debug", action="store_true", help="start the debugger where an error happens")
    p.add_argument("--pretrained_model", help="checkpoint to start from; none: random weights")
    p.add_argument("--gpus", help="the GPUs of all nodes together: 0,1,2,3 or 0,1,...,63")
    p.add_argument("--scale_lr", action="store_true", help="multiply the learning rate by the samples per step")
    p.add_argument("--nonfinite", choices=["stop", "skip"], help="what to do when the loss is not finite (stop)")
    p.add_argument("--compile", action="store_true", help="compile the networks: slow to start, then faster")
    p.add_argument("--wandb", action="store_true", help="log to Weights & Biases, too")
    group = p.add_argument_group("Lightning's Trainer (all its other parameters are flags, too)")
    for name, text in TRAINER_FLAGS.items():
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, metavar="X")
    return p


def trainer_parameters() -> list[str]:
    """The names of all parameters of Lightning's Trainer."""
    import inspect

    import pytorch_lightning as lightning

    return list(inspect.signature(lightning.Trainer).parameters)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, including all of Lightning's Trainer; `base` holds the configs, `overrides` the key=value words.

    Raises UserError for a word that is neither."""
    p = parser()
    if not {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):  # Lightning takes seconds to import
        for name in trainer_parameters():
            if name not in TRAINER_FLAGS:
                p.add_argument(f"--{name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    opt = p.parse_intermixed_args(argv)
    separate_words(opt)
    if not (opt.base or opt.resume):
        raise UserError("no config is named: add --base configs/v1.yaml, or -r logs/... to resume a run")
    return opt


def separate_words(opt: argparse.Namespace) -> None:
    """Moves key=value words from `base`, which takes all words that follow it, to `overrides`. Raises UserError."""
    words = [word for word in opt.base if "=" in str(word) and not Path(word).is_file()]
    opt.overrides += map(str, words)
    opt.base = [Path(word) for word in opt.base if word not in words]
    for word in opt.overrides:
        if "=" not in word:
            raise UserError(f"{word} is neither a flag nor key=value: see --help")
        if word.split("=")[0].split(".")[0] not in SECTIONS:
            raise UserError(f"{word} begins with none of {', '.join(SECTIONS)}: correct the key, or use a flag")


def merge_configs(
    base: Sequence[str | os.PathLike], overrides: Sequence[str], flags: argparse.Namespace | None = None
) -> DictConfig:
    """Defaults, configs, key=value words and flags as one config; later ones win. Raises UserError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ldm.training.run import DEFAULTS

    try:
        parts = [read_yaml(path) for path in base]
        config = load_config(OmegaConf.merge({"lightning": DEFAULTS}, *parts))
        for word in overrides:
            override(config, word)
        if "data" not in config:
            raise UserError(f"config {base[0]} has no 'data' to train on: see configs/v1.yaml")
        if flags is not None:
            apply_flags(flags, config["lightning"])
        OmegaConf.resolve(config)
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"config: {missing[0]} is ???, which stands for a value to be given: give one")
        return config
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the config cannot be used ({reason}): correct the files of --base, or the key=value words"
        ) from error


def merged(opt: argparse.Namespace, base: Sequence[str | os.PathLike]) -> DictConfig:
    """The config of these files and of the words and flags of the command line. Raises UserError."""
    return merge_configs(base, opt.overrides, opt)


def apply_flags(opt: argparse.Namespace, section: DictConfig) -> None:
    """Write the flags into a config's `lightning` section. Raises UserError for flags that do not go together."""
    trainer = section["trainer"]
    kinds = trainer_kinds()
    flags = {name: getattr(opt, name) for name in trainer_parameters() if hasattr(opt, name)}
    flags = {name: read_value(text, kinds[name], f"--{name} {text}") for name, text in flags.items()}
    if opt.gpus is not None:
        flags["gpus"] = opt.gpus
    if "gpus" in flags:
        if flags.get("accelerator") == "cpu" or "devices" in flags:
            raise UserError(f"--gpus {opt.gpus} does not go with --devices or --accelerator cpu: leave one of them out")
        for name in ("devices", "accelerator"):
            trainer.pop(name, None)
    elif not {"devices", "accelerator"}.isdisjoint(flags):
        trainer.pop("gpus", None)
    trainer.update(flags)
    if opt.nonfinite:
        section["nonfinite"] = opt.nonfinite
    for name in ("scale_lr", "compile"):
        if getattr(opt, name):
            section[name] = True


def find_resumed_run(path: Path) -> tuple[Path, Path]:
    """A run's folder, or a checkpoint in it -> (folder, checkpoint). Raises UserError: one of the files is missing."""
    from ldm.training.checkpoints import LAST

    folder = path if path.is_dir() else path.parent.parent
    checkpoint = path / "checkpoints" / LAST if path.is_dir() else path
    for needed in (checkpoint, folder / "config.yaml"):
        if not needed.is_file():
            raise UserError(f"{needed}, which --resume needs, is missing: name a run that wrote a checkpoint")
    return folder, checkpoint


def new_run_folder(opt: argparse.Namespace) -> Path:
    """The folder for a new run, the same in all its processes. Raises UserError: it contains a run already, or its name
    is too long."""
    from ldm.training.checkpoints import LAST

    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    name = f"{now}_{opt.name or opt.base[0].stem}{opt.postfix}"
    folder = Path(os.environ.setdefault(RUN_VARIABLE, str(opt.project or opt.logdir / name)))
    check_name(folder, "the run's folder")
    if is_url(os.fspath(opt.project or opt.logdir)):
        raise UserError(f"{opt.project or opt.logdir} is in storage: name a folder of this machine, and copy the run")
    if (folder / "checkpoints" / LAST).exists():
        raise UserError(f"{folder} contains a run already: resume it with -r {folder}, or name another folder")
    return folder


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    if opt.resume:
        folder, checkpoint = find_resumed_run(opt.resume)
        config = merged(opt, [folder / "config.yaml", *opt.base])
    else:
        folder, checkpoint = new_run_folder(opt), None
        config = merged(opt, opt.base)
    from ldm.training.run import train

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
