"""Features of all pictures of a folder, and their statistics, kept beside it."""

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
    """The dataset's items in lists, in order, loaded by as many processes as pay; with a progress bar.

    The items should hold arrays, not tensors: those would travel in shared memory, a file handle each."""
    forks = sys.platform == "linux" and len(dataset) > 4 * batch_size  # elsewhere forking is not safe
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


class Prepared(Dataset):
    """Pictures as an extractor takes them. Raises UserError, when indexed, for one that cannot be read."""

    def __init__(self, paths: Sequence[Path], extractor: Extractor):
        self.paths, self.prepare = paths, extractor.prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.prepare(upright_rgb(open_picture(self.paths[i], "picture")))
        except UserError as error:  # which would not come through a worker process as it is
            return error


def features_of(paths: Sequence[Path], extractor: Extractor, batch_size: int, title: str) -> Iterator[np.ndarray]:
    """(B,D) after (B,D). Raises UserError for the first picture that cannot be read."""
    for batch in batches(Prepared(paths, extractor), batch_size, title):
        for item in batch:
            if isinstance(item, UserError):
                raise item
        yield extractor(batch).numpy()


def require_real(place: Path) -> None:
    """Raises UserError where there are neither real pictures nor statistics of them."""
    if not place.is_dir() and not list(place.absolute().parent.glob(f"{place.name}-*.npz")):
        raise UserError(
            f"real pictures {place}: there is no such folder; make it with scripts/create_square_gt_for_fid.py, name "
            "another with --real, or leave out what needs it with --skip"
        )


def real_statistics(place: Path, extractor: Extractor, batch_size: int = 32) -> Statistics:
    """Of a folder of real pictures, computed once and kept beside it, as <folder>-<hash of network and weights>.npz;
    where only that file is left, it does.

    Raises UserError: no folder, fewer than two pictures, a damaged one."""
    folder = place.resolve()  # it may be "."
    kept = folder.with_name(f"{folder.name}-{extractor.tag}.npz")
    if not place.is_dir():
        if kept.exists():
            return Statistics.read(kept)
        raise UserError(
            f"real pictures {place}: there is no such folder, nor {kept.name}, what {extractor.model} saw in it"
        )
    paths = pictures_below(place)
    if len(paths) < 2:
        raise UserError(f"real pictures {place}: there is one; two are the least, thousands are usual")
    content = hashlib.sha256()
    for path in paths:
        state = path.stat()
        content.update(
            f"{path.relative_to(place)}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    texts = {"content": content.hexdigest(), "network": extractor.identity}
    if kept.exists():
        statistics = Statistics.read(kept)
        if statistics.texts == texts:
            return statistics
    statistics, keep, done = Statistics(texts=texts), rows_to_keep(len(paths)), 0
    for features in features_of(paths, extractor, batch_size, f"real pictures, {extractor.model}"):
        statistics.add(features, np.array([done + i in keep for i in range(len(features))]))
        done += len(features)
    statistics.write(kept)
    return statistics
