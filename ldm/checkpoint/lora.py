"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685): files, and adding them to a model's weights.

| code            | paper  | shape                                                                 |
|-----------------|--------|-----------------------------------------------------------------------|
| weight          | W_0    | (out, in) of a linear layer, (out, in, 1, 1) of a convolution         |
| lora_A, lora_B  | A, B   | (rank, in) and (out, rank), with (1, 1) appended for a convolution    |
| alpha / rank    | α / r  |                                                                       |

W = W_0 + α/r · B A (section 4.1). Inference adds the product to the weights once and costs nothing more. Training
(ldm/training/lora.py) computes the two terms separately.

An adapter is a .safetensors file of `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, where `<layer>.weight` is the
published name of W_0, with rank and alpha as JSON in its metadata."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldm.checkpoint.files import StateDict
from ldm.files import save_tensors, staging
from ldm.storage import Place, local
from ldm.util import UserError, listing

A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """tensors: `<layer>.lora_A.weight` and `<layer>.lora_B.weight` of every layer."""

    tensors: StateDict
    rank: int
    alpha: float

    def __post_init__(self) -> None:
        """Raises UserError naming the value or the tensor that is wrong."""
        if not (isinstance(self.rank, int) and self.rank >= 1) or isinstance(self.rank, bool):
            raise UserError(f"lora: its rank is {self.rank!r}: use a whole number from 1, for instance 8")
        if not isinstance(self.alpha, (int, float)) or isinstance(self.alpha, bool) or not 0 < self.alpha < math.inf:
            raise UserError(f"lora: its alpha is {self.alpha!r}: use a number above 0, for instance the rank")
        if not self.tensors:
            raise UserError("lora: it has no tensors: use a lora.safetensors that training wrote")
        for name, tensor in self.tensors.items():
            layer, factor = name[: -len(A)], name[-len(A) :]
            if factor not in (A, B) or layer + (B if factor == A else A) not in self.tensors:
                raise UserError(
                    f"lora: {name} does not belong to a pair of {A[1:]} and {B[1:]}: use a lora.safetensors that "
                    "training wrote"
                )
            rank = tensor.shape[0 if factor == A else 1] if tensor.ndim in (2, 4) else None
            if rank != self.rank or not tensor.is_floating_point():
                raise UserError(
                    f"lora: {name} is {tensor.dtype} {tuple(tensor.shape)}, not a float matrix of rank {self.rank}: "
                    "use a lora.safetensors that training wrote"
                )

    @property
    def layers(self) -> list[str]:
        """Published names, without `.weight`."""
        return [name.removesuffix(A) for name in self.tensors if name.endswith(A)]


def merge(tensors: Mapping[str, Tensor], adapter: Adapter, scale: float = 1.0) -> StateDict:
    """W_0 + scale · α/r · B A for every layer of the adapter, computed in float32, in the dtype of W_0.

    tensors: a model's, under the published names; only the changed ones are returned. Raises UserError naming layers
    that the model lacks or that have another shape, or a scale that is not finite."""
    if not math.isfinite(scale):
        raise UserError(f"lora_scale is {scale}: use a finite number, 1 for the adapter as it was trained")
    if missing := [f"{layer}.weight" for layer in adapter.layers if f"{layer}.weight" not in tensors]:
        raise UserError(f"lora: the model lacks {listing(missing)}: use the adapter with the model it was trained from")
    merged = {}
    for layer in adapter.layers:
        weight, a, b = tensors[f"{layer}.weight"], adapter.tensors[layer + A], adapter.tensors[layer + B]
        if (*b.shape[:1], *a.shape[1:]) != tuple(weight.shape) or math.prod(b.shape[2:]) != 1:
            raise UserError(
                f"lora: {layer}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit the model's "
                f"{tuple(weight.shape)}: use the adapter with the model it was trained from"
            )
        a, b = (factor.to(weight.device, torch.float32).flatten(1) for factor in (a, b))
        delta = (b @ a).view(weight.shape)
        merged[f"{layer}.weight"] = (weight.float() + scale * adapter.alpha / adapter.rank * delta).to(weight.dtype)
    return merged


def merge_into(model: nn.Module, adapter: Adapter, scale: float = 1.0) -> None:
    """Replaces the weights of a LatentDiffusion by the merged ones. The model must not have peft's layers."""
    model.load_state_dict(merge(model.state_dict(), adapter, scale), strict=False, assign=True)


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Reads an adapter without running code from the file. Raises UserError: missing, damaged, not an adapter."""
    path = local(path)
    cure = "use a lora.safetensors that training wrote"
    try:
        path.open("rb").close()  # gives the reason where the file cannot be opened
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except OSError as error:
        raise UserError(f"lora {path} cannot be read ({error.strerror or error}): {cure}") from error
    except SafetensorError as error:
        raise UserError(f"lora {path} is damaged or not a .safetensors file ({error}): {cure}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"lora {path}: {name} is not finite: train again with a lower learning rate")
    try:
        return Adapter(tensors, json.loads(metadata["rank"]), json.loads(metadata["alpha"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"lora {path} has no rank and alpha in its metadata: {cure}") from error
    except UserError as error:
        raise UserError(f"lora {path}{str(error).removeprefix('lora')}") from error


def write_adapter(adapter: Adapter, path: Place) -> None:
    """Writes atomically: a failure leaves an earlier file as it was."""
    metadata = {"format": "pt", "rank": json.dumps(adapter.rank), "alpha": json.dumps(adapter.alpha)}
    with staging(path.parent) as folder:
        tensors = {name: tensor.cpu() for name, tensor in adapter.tensors.items()}
        save_tensors(tensors, folder / path.name, metadata)
