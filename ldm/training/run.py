"""A training run: a config -> Trainer, callbacks, loggers, and the folder they write to.

logs/<date>_<name>/config.yaml        the resolved config
                   checkpoints/       last.ckpt, which -r goes on from; step*.ckpt, the best by validation; with
                                      model.lora also lora.safetensors and step*-lora.safetensors, for inference
                   images/step*.png   grids of samples
                   clip.safetensors   where CLIP is what was trained, it, under open_clip's names
                   csv/, tensorboard/ losses, learning rate, samples per second
"""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from ldm.data.datamodule import DataModuleFromConfig
from ldm.fast.networks import preferred_half_dtype
from ldm.files import staging
from ldm.training.callbacks import FiniteLoss, Pictures, Throughput
from ldm.training.checkpoints import AtomicCheckpointIO, Last, best
from ldm.training.lora import AdapterCheckpoints, inject_adapter
from ldm.training.start import initial_model
from ldm.util import UserError, instantiate_from_config

MONITORED = ("val/loss_simple", "val/loss_simple_ema", "val/rec_loss", "val/loss")
CLUSTER = (
    "MASTER_ADDR",
    "SLURM_JOB_ID",
    "TORCHELASTIC_RUN_ID",
    "LSB_JOBID",
    "KUBERNETES_PORT",
)  # say where the nodes are
DEFAULTS = {  # of a config's `lightning` section
    "trainer": {"log_every_n_steps": 10, "benchmark": True, "num_sanity_val_steps": 0},
    "checkpoint": {"every_n_steps": 1000, "top_k": 3},
    "images": {"every_n_steps": 1000, "count": 4, "steps": 50},
    "nonfinite": "stop",
    "seed": 23,
    "scale_lr": False,
    "compile": False,
}


def devices_of(gpus: str, num_nodes: int) -> list[int] | int:
    """The published flag: "0,1,2" or "0,1,...,63", the GPUs of all nodes -> Trainer's `devices`, those of one node."""
    words = [word.strip() for word in str(gpus).strip(" ,").split(",")]
    try:
        if "..." in words:
            place = words.index("...")
            first, second, last = (int(words[i]) for i in (place - 2, place - 1, place + 1))
            if place < 2 or place + 2 != len(words):
                raise ValueError
            words[place:] = range(2 * second - first, last + 1, second - first)
        numbers = [int(word) for word in words]
        if len(set(numbers)) != len(numbers) or min(numbers) < 0:
            raise ValueError
    except (ValueError, IndexError) as error:
        raise UserError(f"--gpus {gpus}: list each GPU once, as 0,1,2,3 or 0,1,...,63") from error
    if num_nodes == 1:
        return numbers
    if len(numbers) % num_nodes:
        raise UserError(f"--gpus {gpus}: {len(numbers)} GPUs do not divide between {num_nodes} nodes; list all")
    return len(numbers) // num_nodes


def trainer_options(config: DictConfig) -> dict[str, Any]:
    """The config's lightning.trainer for Lightning 2: the published `gpus` becomes `devices`. Raises UserError."""
    options = dict(OmegaConf.to_container(config["lightning"]["trainer"], resolve=True))
    gpus = options.pop("gpus", None)
    accelerator = options.get("accelerator")
    if gpus is not None and "devices" not in options and accelerator != "cpu":
        options["accelerator"] = accelerator = "gpu"
        options["devices"] = devices_of(gpus, int(options.get("num_nodes", 1)))
        here = torch.cuda.device_count()
        if here and isinstance(options["devices"], list) and max(options["devices"]) >= here:
            raise UserError(
                f"--gpus {gpus}: this machine has {here} GPUs; name those, or, for GPUs of several machines, add "
                "--num_nodes"
            )
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use; train on the CPU with --accelerator cpu --devices 1")
    has_another = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator in (None, "auto") and not has_another)
    if (
        on_cpu
        and str(options.get("precision")).startswith("bf16")
        and preferred_half_dtype(torch.device("cpu")) == torch.float32
    ):
        print("training in float32: this CPU has no arithmetic in bf16, which would take a hundred times as long")
        options["precision"] = "32-true"
    if int(options.get("num_nodes", 1)) > 1 and not any(name in os.environ for name in CLUSTER):
        raise UserError(
            "--num_nodes: started by hand, each node needs the environment variables MASTER_ADDR and MASTER_PORT (the "
            "same on all) and NODE_RANK (0, 1, ...); set them, or start it with torchrun or SLURM"
        )
    return options


def loggers(folder: Path, wandb: bool) -> list:
    found = [  # each start of a run has a CSV of its own: csv/version_0, version_1, ...
        CSVLogger(folder, name="csv", flush_logs_every_n_steps=1),
        TensorBoardLogger(folder, name="tensorboard", version=""),
    ]
    if wandb:
        try:
            found.append(WandbLogger(project="paint-by-example", name=folder.name, save_dir=folder))
        except ModuleNotFoundError as error:
            raise UserError("--wandb: Weights & Biases is not installed; pip install wandb, or leave it out") from error
    return found


def train(
    config: DictConfig,
    folder: Path,
    resume: Path | None = None,
    pretrained: str | None = None,
    seed: int | None = None,
    test: bool = True,
    wandb: bool = False,
) -> None:
    """Trains the config's model, and writes to `folder`. resume: a checkpoint of a run, to go on from. seed: None for
    the config's, lightning.seed.

    Raises UserError; SystemExit(143) after a signal, once last.ckpt is written."""
    settings = config["lightning"]
    settings["seed"] = seed = settings["seed"] if seed is None else seed
    torch.manual_seed(seed)  # of weights that start as random numbers; all else has generators of its own
    options = trainer_options(config)
    data = instantiate_from_config(config["data"], DataModuleFromConfig)
    data.reseed(seed)
    lora = config["model"].get("lora")
    if lora and pretrained:
        config["model"]["pretrained_model"] = str(pretrained)  # the frozen weights, which going on needs again
    model = initial_model(config, "none" if resume and not lora else pretrained)
    if lora:
        inject_adapter(model, lora)
    model.seed = seed
    if settings["compile"]:
        model.compile_networks()
    last = Last(folder / "checkpoints", settings["checkpoint"]["every_n_steps"])
    callbacks = [
        Throughput(),
        FiniteLoss(settings["nonfinite"] == "skip", last),
        Pictures(folder / "images", **settings["images"]),
        last,
    ]
    if lora:
        callbacks.append(AdapterCheckpoints(model))
    if model.monitor not in (None, *MONITORED):
        raise UserError(f"config: model.params.monitor is {model.monitor}; it has to be one of {', '.join(MONITORED)}")
    if str(options.get("strategy")).startswith(("fsdp", "deepspeed")) and (model.use_ema or lora):
        raise UserError("--strategy: weights in shards go with neither use_ema nor LoRA; use ddp, or switch those off")
    if model.monitor is not None and "validation" in data.configs:
        data.dataset("validation")
        callbacks.append(best(last.path.parent, model.monitor, settings["checkpoint"]["top_k"]))
    else:
        options["limit_val_batches"] = 0
    try:
        trainer = lightning.Trainer(
            **options,
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers(folder, wandb),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # EpochSampler knows its share
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"lightning.trainer: {error}; correct it in the config or the flags") from error
    model.learning_rate = config["model"]["base_learning_rate"]
    if settings["scale_lr"]:
        model.learning_rate *= trainer.accumulate_grad_batches * trainer.world_size * data.batch_size
    if trainer.is_global_zero:
        with staging(folder) as temporary:
            OmegaConf.save(config, temporary / "config.yaml", resolve=True)
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode")  # the frozen ones
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's own handler finishes the step
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume)
    except SIGTERMException:
        if trainer.is_global_zero:
            print(f"stopped after step {trainer.global_step}; to go on: python main.py -r {folder}", flush=True)
        raise SystemExit(143) from None
    except (MisconfigurationException, ValueError) as error:
        if "val_check_interval" in str(error):  # only known once the data is
            raise UserError(f"lightning.trainer: {error}; lower it, or set check_val_every_n_epoch=null") from error
        raise
    if trainer.is_global_zero:
        with staging(folder) as temporary:
            model.export(temporary)
        print(f"trained to step {trainer.global_step}: {last.path}", flush=True)
    if test and "test" in data.configs:
        try:
            data.dataset("test")
        except UserError as error:
            print(f"no test: {error}", flush=True)
        else:
            trainer.test(model, datamodule=data)
