"""Encodes training samples once, for many epochs: the cached latents that ldm.data.latents reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ldm.data.datamodule import use_one_thread
from ldm.data.latents import FOLDER, Description, LatentDataset, half
from ldm.data.open_images import OpenImageDataset
from ldm.data.prior import WithPrior
from ldm.files import staging
from ldm.models.detail.training import DetailTraining
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.prior import Prior
from ldm.storage import is_url
from ldm.training.devices import trainer_options
from ldm.training.start import initial_model
from ldm.util import UserError, cores, instantiate_from_config

PICTURE_DATASET = "ldm.data.open-images.OpenImageDataset"
SHARD_BYTES = 2**28
SPLIT = "train"  # the others are seen once per validation, on pictures


def prepare_latents(config: DictConfig, epochs: int, pretrained: str | None, device: torch.device) -> Path:
    """Writes the encoded samples of the config's training pictures in the first `epochs` epochs -> their folder.

    pretrained: the weights, as for training. After an interruption, finished shards are kept if nothing has changed.
    Raises UserError: unusable config, weights or data; the disk is full."""
    dataset = picture_dataset(config)
    model = initial_model(config, pretrained)
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"{type(model).__name__} does not train on latents: name a config such as configs/v1.yaml")
    model = model.eval().requires_grad_(False).to(device)
    precision = half_type(str(trainer_options(config).get("precision")))
    if is_url(dataset.index.root):
        raise UserError(f"{dataset.index.root} is in storage: prepare latents from a copy of it on this machine")
    folder = dataset.index.root / FOLDER
    batch_size = int(config["data"]["params"]["batch_size"])
    first = encode(model, next(iter(DataLoader(dataset, batch_size=1, sampler=[(0, 0)]))), precision)
    sample_bytes = sum(2 * tensor[0].numel() for tensor in first.values())
    description = Description(
        networks=fingerprint(model),
        recipe=asdict(dataset.recipe),
        seed=dataset.seed,
        pictures=len(dataset),
        epochs=epochs,
        per_shard=max(1, min(len(dataset), SHARD_BYTES // (epochs * sample_bytes))),
        precision=str(precision).removeprefix("torch."),
        detail=encoding_of(model),
    )
    todo = begin(folder, description)
    print(
        f"{len(dataset):,} pictures x {epochs} draws of {sample_bytes / 1024:.1f} KB: "
        f"{len(dataset) * epochs * sample_bytes / 2**30:.2f} GB in {folder}",
        flush=True,
    )
    keys = [shard_keys(description, number) for number in todo]
    batches = [each[start : start + batch_size] for each in keys for start in range(0, len(each), batch_size)]
    workers = max(1, cores() // 4) if device.type == "cpu" else cores()  # on a CPU the networks need most of it
    loader = iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, worker_init_fn=use_one_thread))
    with tqdm(total=sum(map(len, keys)), desc="latents", unit="sample") as bar:
        for number, each in zip(todo, keys, strict=True):
            write_shard(folder, description, number, encoded_batches(model, loader, len(each), precision, bar))
    return folder


def picture_dataset(config: DictConfig) -> OpenImageDataset:
    """The config's training pictures, with the seed of a run. Raises UserError: not configured, not prepared."""
    params = config["data"]["params"]
    if not params.get("train"):
        raise UserError("config: data has no 'train': add it")
    section: dict[str, Any] = {"target": PICTURE_DATASET, "params": dict(params["train"].get("params") or {})}
    if params.get("dataset_dir"):
        section["params"]["dataset_dir"] = params["dataset_dir"]
    dataset = instantiate_from_config(section, OpenImageDataset)
    dataset.seed = int(config["lightning"]["seed"])
    return dataset


def half_type(precision: str) -> torch.dtype:
    """The type in which a Trainer of this precision runs the frozen networks."""
    return {"bf16": torch.bfloat16, "16-m": torch.float16, "16": torch.float16}.get(precision[:4], torch.float32)


def fingerprint(model: LatentDiffusion) -> str:
    """SHA-256 of the weights that latents depend on: those of the autoencoder's encoder and of CLIP."""
    digest = hashlib.sha256()
    for network in (model.first_stage_model.encoder, model.first_stage_model.quant_conv, clip_of(model)):
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.ndim else b"")
    return digest.hexdigest()


def encoding_of(model: LatentDiffusion) -> dict[str, Any] | None:
    """How the model's detail path, if it trains one, encodes references."""
    return model.detail.encoding if isinstance(model, DetailTraining) else None


def clip_of(model: LatentDiffusion) -> nn.Module:
    return model.cond_stage_model.transformer


def begin(folder: Path, description: Description) -> list[int]:
    """Prepares the folder -> the numbers of the shards to write. Shards of another description are removed."""
    try:
        same = Description.read(folder, SPLIT) == description
    except UserError:  # missing or damaged
        same = False
    if not same:
        for path in [folder / f"{SPLIT}.json", *folder.glob(f"{SPLIT}-*.safetensors")]:
            path.unlink(missing_ok=True)
        with staging(folder) as temporary:
            description.write(temporary, SPLIT)
    return [n for n in range(description.shards) if not description.shard_path(folder, SPLIT, n).exists()]


def shard_keys(description: Description, number: int) -> list[tuple[int, int]]:
    """The keys (epoch, i) of a shard's samples, in the order of its rows."""
    first = number * description.per_shard
    pictures = range(first, min(first + description.per_shard, description.pictures))
    return [(epoch, i) for epoch in range(description.epochs) for i in pictures]


@torch.no_grad()
def encode(model: LatentDiffusion, batch: Mapping[str, Tensor], precision: torch.dtype) -> dict[str, Tensor]:
    """encode_batch on the model's device, in the precision of training; of a Prior, too, with all that others need."""
    device = model.betas.device
    kind = LatentDiffusion if isinstance(model, Prior) else type(model)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        return kind.encode_batch(model, {name: tensor.to(device) for name, tensor in batch.items()})


def encoded_batches(
    model: LatentDiffusion, loader: Iterator[Mapping[str, Tensor]], count: int, precision: torch.dtype, bar: tqdm
) -> Iterator[dict[str, np.ndarray]]:
    """The loader's next `count` samples, encoded."""
    while count > 0:
        batch = half(encode(model, next(loader), precision))
        size = len(batch["mask"])
        count -= size
        bar.update(size)
        yield batch


def write_shard(
    folder: Path, description: Description, number: int, batches: Iterator[Mapping[str, np.ndarray]]
) -> None:
    """Writes a shard atomically."""
    parts = list(batches)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with staging(folder) as temporary:
        save_file(columns, description.shard_path(temporary, SPLIT, number))


class SameNetworks(Callback):
    """Stops a run whose latents were made by another autoencoder or CLIP than its own, or without what its detail path
    reads."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        train = trainer.datamodule.dataset("train")
        for dataset in (train.objects, train.prior) if isinstance(train, WithPrior) else (train,):
            if not isinstance(dataset, LatentDataset):
                continue
            if dataset.description.networks != fingerprint(pl_module):
                raise UserError(
                    f"the latents in {dataset.folder} were made by another autoencoder or CLIP than this run's: make "
                    "them again with scripts/prepare_latents.py and the weights that training starts from"
                )
            if encoding_of(pl_module) not in (None, dataset.description.detail):
                raise UserError(
                    f"the latents in {dataset.folder} do not have what this run's detail path reads: make them again "
                    "with scripts/prepare_latents.py and this run's configs"
                )
