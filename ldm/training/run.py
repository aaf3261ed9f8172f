"""A training run: a config -> data, model, callbacks and Trainer. The run writes a folder:

logs/<date>_<name>/config.yaml        the resolved config
                   checkpoints/       last.ckpt, from which -r resumes; step*.ckpt, the best by validation; with
                                      model.adapter also lora.safetensors and step*-lora.safetensors, for inference;
                                      with a detail path the same as detail.safetensors
                   images/step*.png   grids of samples
                   clip.safetensors   a trained CLIP, under open_clip's names
                   csv/, tensorboard/ losses, learning rate, samples per second
"""

from __future__ import annotations

import logging
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.index import MissingSplit
from ldm.files import staging
from ldm.models.base import TrainableModel
from ldm.training.adapters import DETAIL_PATH, LORA, AdapterCheckpoints, DetailCheckpoints, adapter_kind, inject_adapter
from ldm.training.budget import TimeBudget
from ldm.training.callbacks import FiniteLoss, SampleGrid, Throughput
from ldm.training.checkpoints import AtomicCheckpointIO, LastCheckpoint, adapter_beside, best_checkpoints
from ldm.training.devices import trainer_options
from ldm.training.latents import SameNetworks
from ldm.training.start import initial_model
from ldm.util import UserError, instantiate_from_config, require

NO_NEWS = (  # how Lightning's messages begin that say nothing to a user: of what is so on purpose, and advertisements
    r".*module\(s\) in eval mode",  # the frozen networks
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # steps count over all epochs
    r"Checkpoint directory .* exists and is not empty",  # last.ckpt and the best ones share it
    r"The dirpath has changed",  # a run's folder that was moved is resumed where it is
    r"Precision .* is not supported by the model summary",  # which shows its size in float32
    r"Your `IterableDataset` has `__len__` defined",  # ShardDataset divides its samples exactly
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own call of torch
    r"`weights_only` was not set",  # a checkpoint contains the optimizer's state, too
    r"TPU available: False",
    "💡 Tip: ",
)
MONITORED = ("val/loss_simple", "val/loss_simple_ema", "val/rec_loss", "val/loss")
DEFAULTS = {  # of a config's `lightning` section
    "trainer": {"log_every_n_steps": 10, "benchmark": True, "num_sanity_val_steps": 0},
    "checkpoint": {"every_n_steps": 1000, "top_k": 3},
    "images": {"every_n_steps": 1000, "count": 4, "steps": 50},
    "nonfinite": "stop",
    "seed": 23,
    "scale_lr": False,
    "compile": False,
}


def train(
    config: DictConfig,
    folder: Path,
    resume: Path | None = None,
    pretrained: str | None = None,
    seed: int | None = None,
    test: bool = True,
    wandb: bool = False,
) -> None:
    """Train the config's model and write the run to `folder`.

    resume: a checkpoint of an earlier run, to continue from. pretrained: the weights to start from, see initial_model.
    seed: None for the config's lightning.seed. test: if there is a test split, compute its loss at the end.

    Raises UserError, and SystemExit(143) when a signal stops the run; last.ckpt is written before."""
    settings = config["lightning"]
    settings["seed"] = seed = settings["seed"] if seed is None else seed
    torch.manual_seed(seed)  # for random initial weights; everything else has its own generators
    leave_out_no_news()
    options = trainer_options(config)
    data = instantiate_from_config(config["data"], DataModuleFromConfig)
    data.set_seed(seed)
    model = build_model(config, pretrained, resume is not None)
    validate = model.monitor is not None and "validation" in data.configs
    if validate:
        data.dataset("validation")  # fail before training if it is unusable
    else:
        options["limit_val_batches"] = 0
    check_strategy(config, model, options)
    last = LastCheckpoint(folder / "checkpoints", settings["checkpoint"]["every_n_steps"])
    callbacks = build_callbacks(config, folder, model, last, validate)
    trainer = build_trainer(options, folder, callbacks, wandb)
    model.learning_rate = config["model"]["base_learning_rate"]
    if settings["scale_lr"]:
        model.learning_rate *= trainer.accumulate_grad_batches * trainer.world_size * data.batch_size
    if trainer.is_global_zero:
        with staging(folder) as temporary:
            OmegaConf.save(config, temporary / "config.yaml", resolve=True)
    fit(trainer, model, data, folder, resume)
    if trainer.is_global_zero:
        with staging(folder) as temporary:
            model.export(temporary)
        print(f"trained to step {trainer.global_step}: {last.path}", flush=True)
        if kind := adapter_kind(config["model"]):
            flag = DETAIL_PATH if kind == DETAIL_PATH else LORA
            print(f"the adapter, to edit with: --{flag} {adapter_beside(last.path, flag)}", flush=True)
    if test:
        compute_test_loss(trainer, model, data)


def leave_out_no_news() -> None:
    """From now on Lightning neither warns of NO_NEWS nor logs it."""

    def is_news(record: logging.LogRecord) -> bool:
        return not re.match("|".join(NO_NEWS), record.getMessage())

    for message in NO_NEWS:
        warnings.filterwarnings("ignore", message)
    for handler in logging.getLogger("pytorch_lightning").handlers:
        handler.addFilter(is_news)


def build_model(config: DictConfig, pretrained: str | None, resumes: bool) -> TrainableModel:
    """The config's model with its initial weights and, with model.adapter, what trains of it. Raises UserError."""
    kind = adapter_kind(config["model"])
    if kind and pretrained:
        config["model"]["pretrained_model"] = str(pretrained)  # resuming needs the frozen weights again
    model = initial_model(config, "none" if resumes and not kind else pretrained)
    if kind:
        inject_adapter(model, kind, config["model"].get("lora"))
    if model.monitor not in (None, *MONITORED):
        raise UserError(f"config: model.params.monitor is {model.monitor}: use one of {', '.join(MONITORED)}")
    model.seed = config["lightning"]["seed"]
    if config["lightning"]["compile"]:
        model.compile_networks()
    return model


def check_strategy(config: DictConfig, model: TrainableModel, options: dict[str, Any]) -> None:
    """Raises UserError for a strategy that splits the weights where the run needs them whole."""
    if str(options.get("strategy")).startswith(("fsdp", "deepspeed")) and (
        model.use_ema or adapter_kind(config["model"])
    ):
        raise UserError(
            "--strategy splits the weights, which use_ema and adapters need whole: use ddp, or switch those off"
        )


def build_callbacks(
    config: DictConfig, folder: Path, model: TrainableModel, last: LastCheckpoint, validate: bool
) -> list[Callback]:
    """validate: also keep the best checkpoints. Raises UserError: unknown keys of lightning.images, an unusable
    lightning.minutes."""
    settings = config["lightning"]
    try:
        samples = SampleGrid(folder / "images", **settings["images"])
    except TypeError as error:
        raise UserError(f"config: lightning.images cannot be used ({error}): correct its keys") from error
    callbacks: list[Callback] = [
        SameNetworks(),
        Throughput(),
        FiniteLoss(settings["nonfinite"] == "skip", last),
        samples,
        last,
    ]
    if kind := adapter_kind(config["model"]):
        callbacks.append((DetailCheckpoints if kind == DETAIL_PATH else AdapterCheckpoints)(model))
    if settings.get("minutes") is not None:
        callbacks.append(TimeBudget(settings["minutes"], model.scheduler_config))
    if validate:
        callbacks.append(best_checkpoints(last.path.parent, model.monitor, settings["checkpoint"]["top_k"]))
    return callbacks


def build_trainer(options: dict[str, Any], folder: Path, callbacks: list[Callback], wandb: bool) -> lightning.Trainer:
    """options: of trainer_options. Raises UserError: one that Lightning refuses."""
    try:
        return lightning.Trainer(
            **options,
            default_root_dir=folder,
            callbacks=callbacks,
            logger=build_loggers(folder, wandb),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # EpochSampler already divides the samples among processes
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"lightning.trainer cannot be used ({error}): correct it in the config or the flags") from error


def build_loggers(folder: Path, wandb: bool) -> list[Logger]:
    """CSV (a file per start of the run: csv/version_0, ...), TensorBoard and, if asked for, Weights & Biases.

    Raises UserError: one of them is not installed."""
    require("tensorboard", "train")
    loggers: list[Logger] = [
        CSVLogger(folder, name="csv", flush_logs_every_n_steps=1),
        TensorBoardLogger(folder, name="tensorboard", version=""),
    ]
    if wandb:
        try:
            loggers.append(WandbLogger(project="paint-by-example", name=folder.name, save_dir=folder))
        except ModuleNotFoundError as error:
            raise UserError("--wandb needs Weights & Biases: pip install wandb, or leave it out") from error
    return loggers


def fit(
    trainer: lightning.Trainer, model: TrainableModel, data: DataModuleFromConfig, folder: Path, resume: Path | None
) -> None:
    """Train. Raises SystemExit(143) when a signal stops the run, UserError: a validation interval that is too long."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so that Lightning installs its own handler, which finishes the step
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume)
    except SIGTERMException:
        if trainer.is_global_zero:
            print(f"stopped after step {trainer.global_step}; to resume: python main.py -r {folder}", flush=True)
        raise SystemExit(143) from None
    except (MisconfigurationException, ValueError) as error:
        if "val_check_interval" in str(error):  # Lightning checks it only when the data is loaded
            raise UserError(
                f"lightning.trainer cannot be used ({error}): lower it, or set check_val_every_n_epoch=null"
            ) from error
        raise


def compute_test_loss(trainer: lightning.Trainer, model: TrainableModel, data: DataModuleFromConfig) -> None:
    """Log the loss over the test split, if the config has one and its data was prepared."""
    if "test" not in data.configs:
        return
    try:
        data.dataset("test")
    except MissingSplit:
        return
    except UserError as error:
        print(f"test skipped: {error}", flush=True)
        return
    trainer.test(model, datamodule=data)
