"""LoRA: fine-tuning in limited memory (Hu et al. 2021, arXiv 2106.09685).

| code            | paper  | shape                                                            |
|-----------------|--------|------------------------------------------------------------------|
| weight          | W_0    | (out, in) of a linear layer, (out, in, 1, 1) of a convolution    |
| lora_A, lora_B  | A, B   | (rank, in) and (out, rank); a convolution's end in its kernel    |
| alpha / rank    | α / r  |                                                                  |

W = W_0 + α/r · B A (section 4.1): A starts as random numbers and B as zeros, W_0 is frozen. Training runs on peft's
layers, which compute the two terms apart; inference adds them once and costs nothing more.

An adapter is a .safetensors file of `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, where `<layer>.weight` is the
published name of W_0, with rank and alpha as JSON in its metadata."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint.diffusers import UNET
from ldm.checkpoint.files import StateDict
from ldm.files import staging
from ldm.util import UserError, listing

A, B = ".lora_A.weight", ".lora_B.weight"
PEFT_A, PEFT_B = ".lora_A.default.weight", ".lora_B.default.weight"  # as peft calls them inside the model


@dataclass(frozen=True)
class Adapter:
    """tensors: `<layer>.lora_A.weight` and `<layer>.lora_B.weight` of every layer."""

    tensors: StateDict
    rank: int
    alpha: float

    def __post_init__(self) -> None:
        """Raises UserError naming what does not belong in an adapter."""
        if not (isinstance(self.rank, int) and self.rank >= 1) or isinstance(self.rank, bool):
            raise UserError(f"lora: its rank is {self.rank!r}; use a whole number from 1, for instance 8")
        if not isinstance(self.alpha, (int, float)) or isinstance(self.alpha, bool) or not 0 < self.alpha < math.inf:
            raise UserError(f"lora: its alpha is {self.alpha!r}; use a number above 0, for instance the rank")
        if not self.tensors:
            raise UserError("lora: it holds no tensor; name an adapter that training wrote")
        for name, tensor in self.tensors.items():
            layer, part = name[: -len(A)], name[-len(A) :]
            if part not in (A, B) or layer + (B if part == A else A) not in self.tensors:
                raise UserError(f"lora: {name} is none of a pair {A[1:]}, {B[1:]}; name an adapter that training wrote")
            along = tensor.shape[0 if part == A else 1] if tensor.ndim in (2, 4) else None
            if along != self.rank or not tensor.is_floating_point():
                raise UserError(
                    f"lora: {name} is {tensor.dtype} {tuple(tensor.shape)}, which is not of rank {self.rank}"
                )

    @property
    def layers(self) -> list[str]:
        """Published names, without `.weight`."""
        return [name.removesuffix(A) for name in self.tensors if name.endswith(A)]


def inject(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Puts peft's layers into a LatentDiffusion's UNet and freezes all else: only the factors A and B train.

    config: rank; alpha; target_modules, endings of layers' names. Raises UserError: others, or one that names no
    layer."""
    from peft import LoraConfig, inject_adapter_in_model

    unet = model.model.diffusion_model
    try:
        rank, alpha, targets = config["rank"], config["alpha"], list(config["target_modules"])
        if len(config) > 3 or isinstance(config["target_modules"], str):
            raise ValueError
    except Exception as error:  # also OmegaConf's
        raise UserError(
            "config: model.lora has rank, alpha and a list target_modules; see configs/finetune_lora.yaml"
        ) from error
    names = [name for name, _ in unet.named_modules()]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise UserError(f"config: model.lora: target_modules: the UNet has no {target!r}; correct its name")
    model.requires_grad_(False)
    device = next(unet.parameters()).device
    try:
        with device:
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), unet)
        adapter_of(model)
    except (ValueError, TypeError) as error:  # peft's, for layers and numbers that it cannot take
        raise UserError(f"config: model.lora: {str(error).splitlines()[0]}; correct it") from error


def adapter_of(model: nn.Module) -> Adapter:
    """What an injected model's factors are now; not copied."""
    unet = model.model.diffusion_model
    tensors = {}
    for name, parameter in unet.named_parameters():
        for inside, published in ((PEFT_A, A), (PEFT_B, B)):
            if name.endswith(inside):
                tensors[UNET + name.removesuffix(inside) + published] = parameter.detach()
    settings = unet.peft_config["default"]
    return Adapter(tensors, settings.r, settings.lora_alpha)


def merge(tensors: Mapping[str, Tensor], adapter: Adapter, scale: float = 1.0) -> StateDict:
    """W_0 + scale · α/r · B A for every layer of the adapter, computed in float32, in the dtype of W_0.

    tensors: a model's, under the published names; those that change are returned. Raises UserError naming layers that
    are not among them or are of another shape, or a scale that is no number."""
    if not math.isfinite(scale):
        raise UserError(f"lora_scale {scale} is out of range; use a number, 1 for the adapter as it was trained")
    if absent := [f"{layer}.weight" for layer in adapter.layers if f"{layer}.weight" not in tensors]:
        raise UserError(f"lora: the model lacks {listing(absent)}; use the adapter with the model it was trained from")
    merged = {}
    for layer in adapter.layers:
        weight, a, b = tensors[f"{layer}.weight"], adapter.tensors[layer + A], adapter.tensors[layer + B]
        if (*b.shape[:1], *a.shape[1:]) != tuple(weight.shape) or math.prod(b.shape[2:]) != 1:
            raise UserError(
                f"lora: {layer}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit the model's "
                f"{tuple(weight.shape)}; use the adapter with the model it was trained from"
            )
        a, b = (factor.to(weight.device, torch.float32).flatten(1) for factor in (a, b))
        delta = (b @ a).view(weight.shape)
        merged[f"{layer}.weight"] = (weight.float() + scale * adapter.alpha / adapter.rank * delta).to(weight.dtype)
    return merged


def merge_into(model: nn.Module, adapter: Adapter, scale: float = 1.0) -> None:
    """merge, for a LatentDiffusion without peft's layers."""
    model.load_state_dict(merge(model.state_dict(), adapter, scale), strict=False, assign=True)


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Raises UserError: no such file, damaged, no adapter. A file is data; nothing of it is run."""
    path = Path(path)
    cure = "name the lora.safetensors that training wrote"
    try:
        path.open("rb").close()  # for its reasons
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except OSError as error:
        raise UserError(f"lora {path}: cannot be read ({error.strerror or error}); {cure}") from error
    except SafetensorError as error:
        raise UserError(f"lora {path}: is damaged or no .safetensors file ({error}); {cure}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"lora {path}: {name} is not finite; train again at a lower learning rate")
    try:
        return Adapter(tensors, json.loads(metadata["rank"]), json.loads(metadata["alpha"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"lora {path}: has no rank and alpha in its metadata; {cure}") from error
    except UserError as error:
        raise UserError(f"lora {path}{str(error).removeprefix('lora')}") from error


def write_adapter(adapter: Adapter, path: Path) -> None:
    """Whole or not at all."""
    metadata = {"format": "pt", "rank": json.dumps(adapter.rank), "alpha": json.dumps(adapter.alpha)}
    with staging(path.parent) as folder:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter.tensors.items()}
        save_file(tensors, folder / path.name, metadata)


class FactorsOnly(Callback):
    """Checkpoints of a run hold the factors and not the frozen model, which going on reads from where it came.

    checkpoint["lora"] is what inference takes: the averaged factors, if the run keeps an average."""

    def __init__(self, model: nn.Module):
        model.strict_loading = False
        self.base = _fingerprint(model)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not math.isclose(state["base"], self.base, rel_tol=1e-9):
            raise UserError(
                "lora: the run was started from another model than model.pretrained_model is now; name that one with "
                "--pretrained_model"
            )

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        kept = {n: t for n, t in checkpoint["state_dict"].items() if "lora_" in n or n.startswith("model_ema.")}
        checkpoint["state_dict"] = kept
        with pl_module.ema_scope():
            adapter = adapter_of(pl_module)
            own = {name: t.clone() if pl_module.use_ema else t for name, t in adapter.tensors.items()}
        checkpoint["lora"] = {"tensors": own, "rank": adapter.rank, "alpha": adapter.alpha}

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        own = {name for name in pl_module.state_dict() if "lora_" in name}
        if missing := own - checkpoint["state_dict"].keys():
            raise UserError(
                f"--resume: the checkpoint lacks {listing(missing)}; go on with a run that trained an adapter"
            )


def _fingerprint(model: nn.Module) -> float:
    """Of the frozen weights beside the factors."""
    weights = [p for name, p in model.named_parameters() if name.endswith(".base_layer.weight")]
    return math.fsum(weight.detach().double().abs().sum().item() for weight in weights)
