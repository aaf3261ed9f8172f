"""Features of all pictures of a folder; statistics of real pictures, stored beside their folder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.evaluation.features import Extractor
from ldm.evaluation.fid import Statistics, rows_to_keep
from ldm.images import open_picture, pictures_below, upright_rgb
from ldm.util import UserError, cores


def batches(dataset: Dataset, batch_size: int, title: str) -> Iterator[list[Any]]:
    """The dataset's items in lists, in order, with a progress bar. Large datasets are loaded by several processes.

    Items should contain arrays: each tensor would take shared memory and a file handle."""
    forks = sys.platform == "linux" and len(dataset) > 4 * batch_size  # forking is not safe on other systems
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=list,
        num_workers=min(cores(), 8) if forks else 0,
        multiprocessing_context="fork" if forks else None,
    )
    with tqdm(desc=title, total=len(dataset), unit="picture") as bar:
        for batch in loader:
            yield batch
            bar.update(len(batch))


class PreparedPictures(Dataset):
    """`pictures[i]`: an extractor's input, or a UserError where the picture cannot be read."""

    def __init__(self, paths: Sequence[Path], extractor: Extractor):
        self.paths, self.prepare = paths, extractor.prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.prepare(upright_rgb(open_picture(self.paths[i], "picture")))
        except UserError as error:  # returned, since errors of worker processes arrive with another type
            return error


def features_of(paths: Sequence[Path], extractor: Extractor, batch_size: int, title: str) -> Iterator[np.ndarray]:
    """Batches of features (B,D), in the order of the paths. title: of the progress bar. Raises UserError: a picture
    cannot be read."""
    for batch in batches(PreparedPictures(paths, extractor), batch_size, title):
        for item in batch:
            if isinstance(item, UserError):
                raise item
        yield extractor(batch).numpy()


def require_real_pictures(place: Path) -> None:
    """Raises UserError where neither the folder of real pictures nor any statistics of it exist."""
    if not place.is_dir() and not list(place.absolute().parent.glob(f"{place.name}-*.npz")):
        raise UserError(
            f"the folder of real pictures {place} does not exist: make it with scripts/create_square_gt_for_fid.py, "
            "name another with --real, or skip the metrics that need it with --skip"
        )


def real_statistics(place: Path, extractor: Extractor, batch_size: int = 32) -> Statistics:
    """Statistics of a folder of real pictures, stored beside it as <folder>-<hash of network and weights>.npz. They are
    computed again when the folder has changed. If the folder is missing, the file is used.

    Raises UserError: neither folder nor file, fewer than two pictures, a damaged picture."""
    folder = place.resolve()  # place may be "."
    stored = folder.with_name(f"{folder.name}-{extractor.tag}.npz")
    if not place.is_dir():
        if stored.exists():
            return Statistics.read(stored)
        raise UserError(
            f"the folder of real pictures {place} does not exist, nor does {stored.name} with its statistics in "
            f"{extractor.model}: name another with --real"
        )
    found = pictures_below(place)
    paths = found.files
    if len(paths) < 2:
        raise UserError(f"real pictures {place}: {len(paths)} is too few: use at least two, better thousands")
    content = hashlib.sha256()
    for path in paths:
        state = path.stat()
        content.update(
            f"{path.relative_to(place)}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    texts = {"content": content.hexdigest(), "network": extractor.identity}
    if stored.exists():
        statistics = Statistics.read(stored)
        if statistics.texts == texts:
            return statistics
    print(found.summary("real pictures"), file=sys.stderr)
    statistics, keep, done = Statistics(texts=texts), rows_to_keep(len(paths)), 0
    for features in features_of(paths, extractor, batch_size, f"real pictures, {extractor.model}"):
        statistics.add(features, np.array([done + i in keep for i in range(len(features))]))
        done += len(features)
    statistics.write(stored)
    return statistics
