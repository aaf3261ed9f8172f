"""The paper's quality score (QS): the likelihood of a picture under a mixture of Gaussians that is fitted to features
of real pictures (GIQA, Gu et al. 2020), here CLIP's, on a scale that the authors chose."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.checkpoint.files import Immutable, UnknownObject
from ldm.files import staging
from ldm.util import UserError, require

COMPONENTS = 20
FULL_SCORE = 300.0  # the log-likelihood of a score of 100
PICKLED_DTYPES = ("f8", "f4", "i8", "i4")  # of arrays that are read from a pickle


def quality_score(log_likelihood: np.ndarray) -> np.ndarray:
    """Log-likelihoods (n,) -> clip(log-likelihood / 300, 0, 1) * 100; the published QS is the mean."""
    return np.clip(np.asarray(log_likelihood) / FULL_SCORE, 0.0, 1.0) * 100.0


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture of K components in D dimensions.

    Names are scikit-learn's. weights (K,); means (K,D); precisions_cholesky (K,D,D), upper triangular U with U U^T =
    the inverse covariance. features: model and hash of the network whose features it was fitted to, "" if unknown."""

    weights: np.ndarray
    means: np.ndarray
    precisions_cholesky: np.ndarray
    features: str = ""

    def __post_init__(self) -> None:
        k, d = np.shape(self.means)
        if np.shape(self.weights) != (k,) or np.shape(self.precisions_cholesky) != (k, d, d):
            raise ValueError("its arrays do not fit together")
        arrays = (self.weights, self.means, self.precisions_cholesky)
        if not all(x.dtype.kind == "f" and np.isfinite(x).all() for x in arrays):
            raise ValueError("it holds values that are not finite numbers")
        if (self.weights <= 0).any() or (np.diagonal(self.precisions_cholesky, axis1=1, axis2=2) <= 0).any():
            raise ValueError("its weights or precisions are not positive")

    def require_features(self, features: str) -> None:
        """Raises UserError unless it was fitted to these features, or to unknown ones. features: Extractor.identity."""
        if self.features not in ("", features):
            raise UserError(
                f"the mixture for QS was fitted to features of {self.features:.60}..., not of {features:.60}...: name "
                "another mixture with --gmm, or use the same weights"
            )

    def log_likelihood(self, features: np.ndarray) -> np.ndarray:
        """Features (B,D) -> (B,): log sum_k w_k N(x; m_k, C_k). Raises UserError: another D."""
        x = np.asarray(features, dtype=np.float64)
        if x.shape[1] != self.means.shape[1]:
            raise UserError(
                f"the mixture for QS has {self.means.shape[1]} dimensions but the features have {x.shape[1]}: name "
                "another mixture with --gmm"
            )
        logs = []
        for weight, mean, factor in zip(self.weights, self.means, self.precisions_cholesky, strict=True):
            distance = (((x - mean) @ factor) ** 2).sum(1)
            logs.append(
                np.log(weight) + np.log(np.diag(factor)).sum() - 0.5 * (x.shape[1] * np.log(2 * np.pi) + distance)
            )
        return np.logaddexp.reduce(logs, axis=0)

    @classmethod
    def fit(cls, features: np.ndarray, components: int = COMPONENTS, seed: int = 0, name: str = "") -> Mixture:
        """Fits by expectation maximisation, with full covariances (scikit-learn). features (n,D), n >= components;
        name: of the features."""
        sklearn_mixture = require("sklearn.mixture", "eval")
        model = sklearn_mixture.GaussianMixture(components, covariance_type="full", random_state=seed)
        fitted = model.fit(np.asarray(features, np.float64))
        return cls(fitted.weights_, fitted.means_, fitted.precisions_cholesky_, name)

    def write(self, path: Path) -> None:
        """Writes an npz file."""
        with staging(path.parent) as temporary:
            np.savez(temporary / path.name, **vars(self))

    @classmethod
    def read(cls, path: Path) -> Mixture:
        """Reads what `write` wrote. Raises UserError: missing, damaged, or another kind of file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(*(file[name] for name in ("weights", "means", "precisions_cholesky")), str(file["features"]))
        except FileNotFoundError as error:
            raise UserError(
                f"mixture {path} does not exist: make it with scripts/fit_quality_gmm.py --images "
                f"{path.parent}/test2017_square --output {path}, or name another with --gmm"
            ) from error
        except Exception as error:  # numpy, zipfile and missing names raise errors of many types
            raise UserError(
                f"mixture {path} cannot be read ({error}): make it with scripts/fit_quality_gmm.py"
            ) from error

    @classmethod
    def from_pickle(cls, path: Path) -> Mixture:
        """Reads a pickled scikit-learn GaussianMixture, such as the published one, without running code from the file.
        Raises UserError: missing, damaged, or another object."""
        try:
            with open(path, "rb") as file:
                fitted = _Unpickler(file).load()
            if not isinstance(fitted, _Estimator):
                raise ValueError("it holds no GaussianMixture")
            names = ("weights_", "means_", "precisions_cholesky_")
            arrays = [np.asarray(fitted.state[name].array, dtype=np.float64) for name in names]
            if fitted.state.get("covariance_type", "full") != "full":
                raise ValueError("its covariances are not full")
            return cls(*arrays)
        except OSError as error:
            raise UserError(f"mixture {path} cannot be read ({error.strerror}): check the path") from error
        except Exception as error:  # a damaged or hostile file can make Python raise anything
            reason = str(error) or type(error).__name__
            raise UserError(
                f"mixture {path} cannot be read as a pickled GaussianMixture ({reason}): fit one with "
                "scripts/fit_quality_gmm.py --images"
            ) from error


class _Estimator(UnknownObject):
    """Stands for scikit-learn's GaussianMixture; keeps its attributes in `state`."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DType(UnknownObject):
    """Stands for numpy.dtype."""

    def __init__(self, kind: Any = "", *_: Any):
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>" else "="

    def parse(self, data: bytes, shape: Any, order: str) -> np.ndarray:
        """The array of this type in `data`. Raises ValueError: not a type of numbers."""
        if self.kind not in PICKLED_DTYPES:
            raise ValueError("an array does not hold numbers")
        return np.frombuffer(data, dtype=self.order + self.kind).reshape(shape, order=order)


class _Array(UnknownObject):
    """Stands for a numpy array that _reconstruct makes empty and __setstate__ fills."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2's bytes
        if isinstance(kind, _DType) and isinstance(data, bytes) and kind.kind in PICKLED_DTYPES:
            self.array = kind.parse(data, shape, "F" if by_columns else "C")


class _FromBuffer(_Array):
    """Stands for a numpy array that _frombuffer makes."""

    def __init__(self, data: Any, kind: Any, shape: Any, order: str = "C"):
        self.array = kind.parse(bytes(data), shape, order)


class _Encode(Immutable):
    """Stands for _codecs.encode, with which old protocols write bytes."""

    def __call__(self, text: str, *_: Any) -> bytes:
        return text.encode("latin-1")


class _Unpickler(pickle.Unpickler):
    """Knows a few names; any other becomes UnknownObject. Nothing that the file names is imported or called."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="latin-1")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("sklearn.mixture") and name == "GaussianMixture":
            return _Estimator
        if module == "numpy" and name == "dtype":
            return _DType
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Array
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _FromBuffer
        if module == "_codecs" and name == "encode":
            return _Encode()
        if module.startswith("joblib"):
            raise ValueError("joblib wrote it; load it if you trust it, and write it again with pickle.dump")
        return UnknownObject
