"""Adapters: what fine-tuning changed of a model's weights, in small files, and adding them to the weights.

An adapter is a .safetensors file. Each of its tensors has the published name of a weight W_0, or of its layer, and a
suffix that says how the change of W_0 follows from it:

| suffix                       | tensor                                        | change Δ of W_0                 |
|------------------------------|-----------------------------------------------|---------------------------------|
| lora_A.weight, lora_B.weight | A (rank,in) and B (out,rank), with (1,1)      | α/r · B A (Hu et al. 2021,      |
|                              | appended for a convolution                    | arXiv 2106.09685, section 4.1)  |
| delta                        | D, of W_0's shape                             | D                               |
| singular                     | d (min(out,in),), where W_0 = U diag(S) V^T   | U diag(max(S + d, 0) - S) V^T   |
|                              |                                               | (Han et al. 2023, arXiv         |
|                              |                                               | 2303.11305, section 3.2)        |

W = W_0 + Σ scale · Δ over all adapters: inference adds the changes to the weights once and costs nothing more. What is
trained, and how, is in ldm/training/adapters.py. The metadata have rank r and alpha α as JSON; the tensor
`learnable_vector` is the model's v, which tells that model from others."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldm.checkpoint.files import StateDict
from ldm.files import save_tensors, staging
from ldm.models.diffusion.conditioning import is_related
from ldm.storage import Place, local_or_shipped
from ldm.util import UserError, listing

A, B = ".lora_A.weight", ".lora_B.weight"
DELTA, SINGULAR = ".delta", ".singular"
V = "learnable_vector"
WRITTEN = "use a lora.safetensors that training wrote"
TRAINED_FROM = "use the adapter with the model it was trained from"


@dataclass(frozen=True)
class Adapter:
    """tensors: as in the file, without v; rank, alpha: of a LoRA adapter; v: of the model that it was trained from, of
    any shape; None: not known. name: in messages."""

    tensors: StateDict
    rank: int | None = None
    alpha: float | None = None
    v: Tensor | None = None
    name: str = "lora"

    def __post_init__(self) -> None:
        """Raises UserError naming the value or the tensor that is wrong."""
        if not self.tensors:
            raise UserError(f"{self.name}: it has no tensors: {WRITTEN}")
        if any(name.endswith((A, B)) for name in self.tensors):
            self._check_rank()
        for name, tensor in self.tensors.items():
            if name.endswith((A, B)):
                self._check_factor(name, tensor)
            elif not name.endswith((DELTA, SINGULAR)):
                raise UserError(
                    f"{self.name}: {name} does not belong to a pair of {A[1:]} and {B[1:]}, and is no {DELTA[1:]} or "
                    f"{SINGULAR[1:]}: {WRITTEN}"
                )
            elif not tensor.is_floating_point() or (name.endswith(SINGULAR) and tensor.ndim != 1):
                raise UserError(f"{self.name}: {name} is {tensor.dtype} {tuple(tensor.shape)}: {WRITTEN}")

    def _check_rank(self) -> None:
        if not (isinstance(self.rank, int) and self.rank >= 1) or isinstance(self.rank, bool):
            raise UserError(f"{self.name}: its rank is {self.rank!r}: use a whole number from 1, for instance 8")
        if not isinstance(self.alpha, (int, float)) or isinstance(self.alpha, bool) or not 0 < self.alpha < math.inf:
            raise UserError(f"{self.name}: its alpha is {self.alpha!r}: use a number above 0, for instance the rank")

    def _check_factor(self, name: str, tensor: Tensor) -> None:
        layer, factor = name[: -len(A)], name[-len(A) :]
        if layer + (B if factor == A else A) not in self.tensors:
            raise UserError(f"{self.name}: {name} does not belong to a pair of {A[1:]} and {B[1:]}: {WRITTEN}")
        rank = tensor.shape[0 if factor == A else 1] if tensor.ndim in (2, 4) else None
        if rank != self.rank or not tensor.is_floating_point():
            raise UserError(
                f"{self.name}: {name} is {tensor.dtype} {tuple(tensor.shape)}, not a float matrix of rank {self.rank}: "
                f"{WRITTEN}"
            )

    @property
    def weights(self) -> list[str]:
        """Published names of the weights that it changes."""
        names = [name[: -len(A)] + ".weight" for name in self.tensors if name.endswith(A)]
        return names + [name.rpartition(".")[0] for name in self.tensors if name.endswith((DELTA, SINGULAR))]

    def _factors(self, weight: str) -> tuple[Tensor, Tensor] | None:
        layer = weight.removesuffix(".weight")
        return (self.tensors[layer + A], self.tensors[layer + B]) if layer + A in self.tensors else None

    def fits(self, name: str, shape: Sequence[int]) -> bool:
        """Whether it can change the weight of that published name, if it has that shape."""
        if factors := self._factors(name):
            a, b = factors
            return (*b.shape[:1], *a.shape[1:]) == tuple(shape) and math.prod(b.shape[2:]) == 1
        if name + DELTA in self.tensors:
            return self.tensors[name + DELTA].shape == tuple(shape)
        return len(shape) >= 2 and len(self.tensors[name + SINGULAR]) == min(shape[0], math.prod(shape[1:]))

    def change(self, name: str, weight: Tensor) -> Tensor:
        """Δ, float32, of the weight of that published name."""
        if factors := self._factors(name):
            a, b = (factor.to(weight.device, torch.float32).flatten(1) for factor in factors)
            return self.alpha / self.rank * (b @ a).view(weight.shape)  # type: ignore[operator]  # see _check_rank
        if name + DELTA in self.tensors:
            return self.tensors[name + DELTA].to(weight.device, torch.float32)
        shift = self.tensors[name + SINGULAR].to(weight.device, torch.float32)
        return spectral_change(*decompose(weight), shift).view(weight.shape)


def decompose(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W_0 (out,in) or (out,in,...) -> U (out,k), S (k,) and V^T (k,in), float32, with k = min(out,in)."""
    return torch.linalg.svd(weight.detach().float().flatten(1), full_matrices=False)


def spectral_change(u: Tensor, s: Tensor, vh: Tensor, shift: Tensor) -> Tensor:
    """U diag(max(S + d, 0) - S) V^T (out,in), exactly 0 for d = 0."""
    return (u * ((s + shift).relu() - s)) @ vh


def merge(tensors: Mapping[str, Tensor], stack: Sequence[tuple[Adapter, float]]) -> StateDict:
    """W_0 + Σ scale · Δ for every weight that an adapter changes, computed in float32, in the dtype of W_0.

    tensors: a model's, under the published names; stack: adapters and their scales; only the changed weights are
    returned. Raises UserError: weights that the model lacks or that have another shape, an adapter of a model that is
    not related, a scale that is not finite."""
    changes: StateDict = {}
    for adapter, scale in stack:
        if not math.isfinite(scale):
            raise UserError(f"lora_scale is {scale}: use a finite number, 1 for the adapter as it was trained")
        if missing := [name for name in adapter.weights if name not in tensors]:
            raise UserError(f"{adapter.name}: the model lacks {listing(missing)}: {TRAINED_FROM}")
        for name in adapter.weights:
            if not adapter.fits(name, tensors[name].shape):
                raise UserError(
                    f"{adapter.name}: it does not fit the model's {name} {tuple(tensors[name].shape)}: {TRAINED_FROM}"
                )
        if adapter.v is not None and V in tensors and not is_related(adapter.v, tensors[V]):
            raise UserError(f"{adapter.name} belongs to another model: {TRAINED_FROM}")
        for name in adapter.weights:
            change = scale * adapter.change(name, tensors[name])
            changes[name] = changes[name] + change if name in changes else change
    return {name: (tensors[name].float() + change).to(tensors[name].dtype) for name, change in changes.items()}


def merge_into(model: nn.Module, stack: Sequence[tuple[Adapter, float]]) -> None:
    """Replaces the weights of a LatentDiffusion by the merged ones. The model must not have an adapter's layers."""
    model.load_state_dict(merge(model.state_dict(), stack), strict=False, assign=True)


def in_list(given: Any) -> list[Any]:
    """None, a value, or several in a list or tuple -> all of them in a list."""
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def alone(values: list[Any]) -> Any:
    """The value of a list of one, as settings have it; other lists as they are."""
    return values[0] if len(values) == 1 else values


def read_stack(
    lora: str | os.PathLike | Sequence[str | os.PathLike] | None, scale: float | Sequence[float] = 1.0
) -> list[tuple[Adapter, float]]:
    """lora: a path, several, or none; scale: one for all of them, or one for each -> what `merge` adds.

    Raises UserError as read_adapter does, or for another number of scales."""
    paths, scales = in_list(lora), in_list(scale)
    if len(scales) not in (1, len(paths)):
        raise UserError(f"lora has {len(paths)} files and lora_scale {len(scales)} numbers: give one for each, or one")
    return list(zip(map(read_adapter, paths), scales * (len(paths) if len(scales) == 1 else 1), strict=True))


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Reads an adapter without running code from the file. Raises UserError: missing, damaged, not an adapter."""
    metadata, tensors = read_tensors(path, "lora", WRITTEN)
    try:
        rank, alpha = json.loads(metadata["rank"]), json.loads(metadata["alpha"])
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"lora {path} has no rank and alpha in its metadata: {WRITTEN}") from error
    v = tensors.pop(V, None)
    return Adapter(tensors, rank, alpha, v, f"lora {path}")


def read_tensors(path: str | os.PathLike, what: str, cure: str) -> tuple[dict[str, str], StateDict]:
    """-> the metadata and tensors of a .safetensors file of trained weights, running no code from it. what, cure: of
    messages. Raises UserError: missing, damaged, a tensor that is not finite."""
    path = local_or_shipped(path)
    try:
        path.open("rb").close()  # gives the reason where the file cannot be opened
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror or error}): {cure}") from error
    except SafetensorError as error:
        raise UserError(f"{what} {path} is damaged or not a .safetensors file ({error}): {cure}") from error
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():  # which exists for every type, also those of 8 bits
            raise UserError(f"{what} {path}: {name} is not finite: train again with a lower learning rate")
    return metadata, tensors


def write_adapter(adapter: Adapter, path: Place) -> None:
    """Writes atomically: a failure leaves an earlier file as it was."""
    metadata = {"format": "pt", "rank": json.dumps(adapter.rank), "alpha": json.dumps(adapter.alpha)}
    tensors = adapter.tensors | ({} if adapter.v is None else {V: adapter.v})
    with staging(path.parent) as folder:
        save_tensors({name: tensor.cpu() for name, tensor in tensors.items()}, folder / path.name, metadata)
