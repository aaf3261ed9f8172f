"""DataModuleFromConfig: the config's `data` section -> data loaders for Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from ldm.data.prior import WithPrior
from ldm.data.shards import ShardDataset
from ldm.util import UserError, cores, instantiate_from_config


class EpochSampler(DistributedSampler):  # a DistributedSampler, since Lightning leaves such a sampler alone
    """The keys (epoch, i) of one process's samples in one epoch; every process gets the same number.

    shuffle, for training: a permutation drawn from (seed, epoch); the samples that remain when their number is divided
    by `world` are left out of that epoch. Otherwise: all samples in order, always with epoch 0, so that every
    validation sees the same ones; if they do not divide evenly, the first ones are repeated at the end."""

    def __init__(self, count: int, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1):
        super().__init__(range(count), world, rank, shuffle, seed, drop_last=shuffle)
        self.resume_point = (0, 0)  # epoch, and how many of its keys to skip

    def resume(self, epoch: int, skip: int) -> None:
        """Begin in this epoch, after its first `skip` keys."""
        self.epoch, self.resume_point = epoch, (epoch, skip)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            epoch, skip = self.resume_point
            return iter(self.keys(self.epoch)[skip if epoch == self.epoch else 0 :])
        own = range(self.rank, self.total_size, self.num_replicas)
        return iter([(0, i % len(self.dataset)) for i in own])

    def keys(self, epoch: int) -> list[tuple[int, int]]:
        """All of this process's keys in a training epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))
        return [(epoch, i) for i in order[self.rank : self.total_size : self.num_replicas].tolist()]


class DataModuleFromConfig(lightning.LightningDataModule):
    """train, validation, test: configs of datasets; dataset_dir: overrides that of all three. batch_size: samples per
    process and step. num_workers: loading processes per training process (default: its share of the cores, at most 8).
    prior, prior_share: the dataset_dir of ordinary pictures, prepared as those of train, and the share of the training
    samples that they replace, see WithPrior. seed: of the order of training samples. wrap: accepted because published
    configs have it, without effect."""

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        dataset_dir: str | None = None,
        wrap: bool = False,
        num_workers: int | None = None,
        seed: int = 0,
        prior: str | None = None,
        prior_share: float = 0.5,
    ):
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.prior, self.prior_share = prior, prior_share
        self.num_workers = num_workers
        self.configs = {
            name: config for name, config in (("train", train), ("validation", validation), ("test", test)) if config
        }
        if dataset_dir:
            self.configs = {name: _in_folder(config, dataset_dir) for name, config in self.configs.items()}
        self.datasets: dict[str, Dataset] = {}

    def set_seed(self, seed: int) -> None:
        """Draw the order and samples of training from this seed. Those of validation stay, so that runs can be
        compared."""
        self.seed = seed
        self.dataset("train").seed = seed

    def dataset(self, name: str) -> Dataset:
        """The dataset of a split, built at the first call. Raises UserError: not in the config, not prepared."""
        if name not in self.configs:
            raise UserError(f"config: data has no {name!r}: add it")
        if name not in self.datasets:
            self.datasets[name] = instantiate_from_config(self.configs[name], Dataset)
            if name == "train" and self.prior:
                ordinary = instantiate_from_config(_in_folder(self.configs[name], self.prior), Dataset)
                self.datasets[name] = WithPrior(self.datasets[name], ordinary, self.prior_share)
        return self.datasets[name]

    def train_dataloader(self) -> DataLoader:
        """Begins at the trainer's position, which lies inside an epoch when the resumed run stopped there."""
        loader = self._loader("train", shuffle=True)
        epoch, batches = divmod(self._batches_seen(), self._epoch_length(loader))
        if isinstance(loader.sampler, EpochSampler):
            loader.sampler.resume(epoch, batches * self.batch_size)
        else:
            loader.sampler.set_epoch(epoch)
        return loader

    def _epoch_length(self, loader: DataLoader) -> int:
        """Batches in a training epoch, limited by the trainer's limit_train_batches."""
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        return max(1, min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit))

    def _batches_seen(self) -> int:
        """Training batches of this process over all epochs, including the current one."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready if self.trainer else 0

    def train_paths(self) -> list[Path]:
        """The files of the current training batch; empty if they come from shards."""
        sampler = self.trainer.train_dataloader.sampler
        if not isinstance(sampler, EpochSampler):
            return []
        epoch, batch = divmod(self._batches_seen() - 1, self._epoch_length(self.trainer.train_dataloader))
        keys = sampler.keys(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        dataset = self.dataset("train")
        chosen = map(dataset.choose, keys) if isinstance(dataset, WithPrior) else ((dataset, key) for key in keys)
        return [each.path(i) for each, (_, i) in chosen]

    def first_samples(self, count: int) -> dict[str, Tensor]:
        """A batch of the first validation samples, or of training samples if there is no validation."""
        dataset = self.dataset("validation" if "validation" in self.configs else "train")
        return default_collate(list(islice(iter(dataset), count)))

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", shuffle=False)

    def _loader(self, name: str, shuffle: bool) -> DataLoader:
        dataset = self.dataset(name)
        trainer = self.trainer
        rank, world, local = (trainer.global_rank, trainer.world_size, trainer.num_devices) if trainer else (0, 1, 1)
        workers = min(8, cores() // local) if self.num_workers is None else self.num_workers
        if isinstance(dataset, ShardDataset):
            workers = min(workers, dataset.max_workers(world))
            dataset.divide(rank, world, max(1, workers), self.batch_size)
        options = {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "worker_init_fn": use_one_thread,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        if isinstance(dataset, ShardDataset):
            loader = DataLoader(dataset, **options)
            loader.sampler.set_epoch = dataset.set_epoch if shuffle else lambda _: None  # called by Lightning
            return loader
        sampler = EpochSampler(len(dataset), shuffle, self.seed, rank, world)
        loader = DataLoader(dataset, sampler=sampler, drop_last=shuffle, **options)
        if not len(loader):
            raise UserError(
                f"{len(dataset)} {name} pictures are fewer than a batch of {self.batch_size} for each of {world} "
                "processes: lower data.params.batch_size"
            )
        return loader


def _in_folder(config: Mapping[str, Any], dataset_dir: str) -> dict[str, Any]:
    """The config of a dataset, for another folder."""
    return {**config, "params": {**config.get("params", {}), "dataset_dir": dataset_dir}}


def use_one_thread(_: int) -> None:
    """The workers already use all cores; OpenCV's own threads would only slow them down."""
    cv2.setNumThreads(0)
