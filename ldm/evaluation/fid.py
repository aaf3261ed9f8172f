"""Distances between two sets of features: the Fréchet distance (FID, Heusel et al. 2017) and the kernel distance (KID,
Binkowski et al. 2018), from statistics that are gathered batch by batch and can be stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ldm.files import staging
from ldm.util import UserError

MAX_ROWS = 5000  # features kept for the kernel distance
KID_SUBSETS, MAX_SUBSET_SIZE = 100, 1000  # of the kernel distance


def rows_to_keep(count: int, seed: int = 0) -> set[int]:
    """The numbers of those of `count` features that are kept: all, or MAX_ROWS random ones."""
    if count <= MAX_ROWS:
        return set(range(count))
    return set(np.random.default_rng(seed).choice(count, MAX_ROWS, replace=False).tolist())


@dataclass(kw_only=True)
class Statistics:
    """Statistics of n features (D,): mean (D,), scatter (D,D) = sum of (x - mean)(x - mean)^T, both float64, and k of
    the features, rows. texts: where the features come from.

    `add` updates them batch by batch as Chan et al. (1979) do, which loses no digits where the mean is large."""

    n: int = 0
    mean: np.ndarray | float = 0.0
    scatter: np.ndarray | float = 0.0
    rows: list[np.ndarray] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def add(self, features: np.ndarray, keep: np.ndarray | None = None) -> None:
        """features (B,D); keep: (B,) bool, True for those to keep as rows."""
        x = np.asarray(features, dtype=np.float64)
        mean, before, total = x.mean(0), self.n, self.n + len(x)
        step = mean - self.mean
        self.scatter = self.scatter + (x - mean).T @ (x - mean) + np.outer(step, step) * (before * len(x) / total)
        self.mean = self.mean + step * (len(x) / total)
        self.n = total
        if keep is not None:
            self.rows.extend(np.asarray(features, dtype=np.float32)[keep])

    @property
    def covariance(self) -> np.ndarray:
        """(D,D), unbiased."""
        return self.scatter / (self.n - 1)

    def write(self, path: Path) -> None:
        """Writes an npz file."""
        arrays = {"n": self.n, "mean": self.mean, "scatter": self.scatter, "rows": np.array(self.rows, np.float32)}
        with staging(path.parent) as temporary:
            np.savez(temporary / path.name, **arrays, **self.texts)

    @classmethod
    def read(cls, path: Path) -> Statistics:
        """Raises UserError: damaged, or another kind of file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            n, mean, scatter, rows = (arrays.pop(name) for name in ("n", "mean", "scatter", "rows"))
            dim = len(mean)
            if n < 2 or scatter.shape != (dim, dim) or rows.ndim != 2 or rows.shape[1] != dim:
                raise ValueError("its arrays do not fit together")
            if not all(x.dtype.kind == "f" and np.isfinite(x).all() for x in (mean, scatter, rows)):
                raise ValueError("it holds values that are not finite numbers")
            texts = {name: str(text) for name, text in arrays.items()}
            return cls(n=int(n), mean=mean, scatter=scatter, rows=list(rows), texts=texts)
        except Exception as error:  # numpy, zipfile and missing names raise errors of many types
            raise UserError(
                f"statistics {path} cannot be read ({error}): remove the file, and they are computed again"
            ) from error


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """L (D,rank) with L L^T = covariance (D,D)."""
    values, vectors = np.linalg.eigh(covariance)
    positive = values > values.max() * 1e-15
    return vectors[:, positive] * np.sqrt(values[positive])


def frechet_distance(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Heusel et al. 2017, eq. 6.

    The trace of the root is the sum of the singular values of L1^T L2, where Li Li^T = Ci. It is real, and exact for
    covariances without full rank, where a matrix root needs a small number on the diagonal. Never negative: rounding
    below 0 becomes 0."""
    root = np.linalg.svd(_square_root(covariance1).T @ _square_root(covariance2), compute_uv=False).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2.0 * root
    return float(np.maximum(distance, 0.0))  # which keeps a nan


def kernel_distance(real: np.ndarray, made: np.ndarray, seed: int = 0) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3: the mean over KID_SUBSETS pairs of
    random subsets, of at most MAX_SUBSET_SIZE features. real (n,D), made (m,D); nan where n or m is below 2."""
    from torchmetrics.image.kid import poly_mmd

    size = min(MAX_SUBSET_SIZE, len(real), len(made))
    if size < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    real, made = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (real, made))
    values = []
    for _ in range(KID_SUBSETS):
        a, b = (torch.from_numpy(rng.choice(len(x), size, replace=False)) for x in (real, made))
        values.append(poly_mmd(real[a], made[b]).item())
    return float(np.mean(values))
