"""Training adapters: fine-tuning of few numbers, in limited memory. All weights W_0 of the model are frozen.

| kind     | which weights of the UNet                               | what trains (ldm/checkpoint/adapters.py) |
|----------|---------------------------------------------------------|------------------------------------------|
| lora     | those of model.lora.target_modules                      | A, B (Hu et al. 2021, arXiv 2106.09685)  |
| v        | to_v of cross-attention (Kumari et al. 2023, arXiv      | D                                        |
|          | 2212.04488, section 3.2)                                |                                          |
| biases   | all biases, and the scales of norms (Xie et al. 2023,   | D                                        |
|          | arXiv 2304.06648, without the factors γ of section 3.2) |                                          |
| singular | matrices of attention (Han et al. 2023, arXiv           | d                                        |
|          | 2303.11305, which takes all matrices)                   |                                          |

With one context token, to_q and to_k of cross-attention have no effect, and its output is to_out to_v c + b. to_out is
square: as far as it has an inverse, every linear map of c is reached by to_v alone.

A detail path (ldm/models/detail) is trained beside frozen weights, too, with checkpoints of the same kind.

All numbers start so that W = W_0 exactly: B, D and d as zeros, A at random. LoRA's layers are peft's, which compute W_0
x and B A x separately; the others compute W from W_0 in every step (torch.nn.utils.parametrize)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ldm.checkpoint.adapters import Adapter, decompose, spectral_change
from ldm.checkpoint.names import UNET
from ldm.models.diffusion.training import UNUSED_WITH_ONE_TOKEN
from ldm.util import UserError, listing

NAMES_IN_FILES = (  # what trains: its name in the model -> that in an adapter's file
    (re.compile(r"\.(lora_[AB])\.default\.weight$"), r".\1.weight"),  # peft's
    (re.compile(r"\.parametrizations\.(weight|bias)\.0\.(delta|singular)$"), r".\1.\2"),
)
FROZEN = re.compile(r"\.base_layer\.weight$|\.parametrizations\.\w+\.original$")  # W_0 of what trains


class Delta(nn.Module):
    """W = W_0 + D."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.delta


class Spectral(nn.Module):
    """W = W_0 + U diag(max(S + d, 0) - S) V^T."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        for name, factor in zip(("u", "s", "vh"), decompose(weight), strict=True):
            self.register_buffer(name, factor, persistent=False)
        self.singular = nn.Parameter(torch.zeros_like(self.s))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # as precise as when the adapter is merged
            return weight + spectral_change(self.u, self.s, self.vh, self.singular).view(weight.shape)


@dataclass(frozen=True)
class Kind:
    """has: whether a parameter of the UNet, by its name, is one whose change trains; change: W_0 -> the module that
    changes it."""

    has: Callable[[str, Tensor], bool]
    change: Callable[[Tensor], nn.Module]


ATTENTION = re.compile(r"\.(attn1\.to_[qkv]|attn2\.to_v|attn[12]\.to_out\.0)\.weight$")
KINDS = {
    "v": Kind(lambda name, _: name.endswith(".attn2.to_v.weight"), Delta),
    "biases": Kind(lambda _, parameter: parameter.ndim == 1, Delta),
    "singular": Kind(lambda name, _: ATTENTION.search(name) is not None, Spectral),
}
LORA, DETAIL_PATH = "lora", "detail"


def adapter_kind(section: Mapping[str, Any]) -> str | None:
    """What alone trains by a config's `model` section: the kind of `adapter`, lora if it only has `lora`, DETAIL_PATH
    if its params have `detail`; None: all weights train. Raises UserError: an unknown kind, or two."""
    kind = section.get("adapter") or (LORA if section.get(LORA) else None)
    if kind not in (None, LORA, *KINDS):
        raise UserError(f"config: model.adapter is {kind}: use one of {', '.join((LORA, *KINDS))}")
    if not (section.get("params") or {}).get(DETAIL_PATH):
        return kind
    if kind:
        raise UserError("config: model has an adapter and a detail path: train one after the other")
    return DETAIL_PATH


def inject_adapter(model: nn.Module, kind: str, lora: Mapping[str, Any] | None = None) -> None:
    """Freezes a LatentDiffusion and puts into its UNet what trains. Of a DetailTraining that is already so.

    kind: of adapter_kind; lora: the config's model.lora section, for LORA: rank; alpha; target_modules, a list of
    the last parts of layers' names. Raises UserError: a missing or unknown key of it, a bad value, a target that
    matches no layer."""
    if kind == DETAIL_PATH:
        return
    model.requires_grad_(False)
    if kind == LORA:
        _inject_lora(model, lora or {})
        return
    unet = model.model.diffusion_model
    one_token = model.cond_stage_model.tokens == 1
    for path, module in list(unet.named_modules()):
        for name, parameter in list(module.named_parameters(prefix=path, recurse=False)):
            if KINDS[kind].has(name, parameter) and not (one_token and UNUSED_WITH_ONE_TOKEN.search(name)):
                register_parametrization(module, name.rpartition(".")[2], KINDS[kind].change(parameter))


def _inject_lora(model: nn.Module, config: Mapping[str, Any]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    unet = model.model.diffusion_model
    try:
        rank, alpha, targets = config["rank"], config["alpha"], list(config["target_modules"])
        if len(config) > 3 or isinstance(config["target_modules"], str):
            raise ValueError
    except Exception as error:  # including OmegaConf's own exceptions
        raise UserError(
            "config: model.lora needs exactly rank, alpha and a list target_modules: see configs/finetune_lora.yaml"
        ) from error
    names = [name for name, _ in unet.named_modules()]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise UserError(
                f"config: model.lora.target_modules names {target!r}, which the UNet lacks: correct its name"
            )
    device = next(unet.parameters()).device
    try:
        with device:
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), unet)
        current_adapter(model)
    except (ValueError, TypeError) as error:  # peft's, for layers and numbers that it does not support
        raise UserError(f"config: model.lora cannot be used ({str(error).splitlines()[0]}): correct it") from error


def current_adapter(model: nn.Module) -> Adapter:
    """The adapter that an injected model holds. Its tensors share the model's memory."""
    unet = model.model.diffusion_model
    tensors = {}
    for name, parameter in unet.named_parameters():
        for pattern, published in NAMES_IN_FILES:
            if pattern.search(name):
                tensors[UNET + pattern.sub(published, name)] = parameter.detach()
    config = getattr(unet, "peft_config", None)
    rank, alpha = (config["default"].r, config["default"].lora_alpha) if config else (None, None)
    return Adapter(tensors, rank, alpha, model.learnable_vector.detach())


class AdapterCheckpoints(Callback):
    """Keeps the frozen weights out of a run's checkpoints. These contain what trains; resuming reads the frozen
    weights from model.pretrained_model again.

    checkpoint[key] is what the adapter's file is written from (WRITERS in ldm/training/checkpoints.py), with averaged
    numbers if the run keeps an average."""

    key: ClassVar[str] = LORA
    frozen: ClassVar[re.Pattern] = FROZEN

    def __init__(self, model: nn.Module):
        model.strict_loading = False
        self.base = self._fingerprint(model)
        self.trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def _kept(self, names: Iterable[str]) -> set[str]:
        """What of a state dict belongs into a checkpoint: what trains, and averages."""
        return {name for name in names if name in self.trained or name.startswith("model_ema.")}

    @property
    def state_key(self) -> str:
        return "FactorsOnly"  # the key in checkpoints that earlier versions wrote

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not math.isclose(state["base"], self.base, rel_tol=1e-9):
            raise UserError(
                "the run started from another model than model.pretrained_model names now: give that model with "
                "--pretrained_model"
            )

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in self._kept(weights)}
        checkpoint[self.key] = self.content(pl_module)

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if missing := self._kept(pl_module.state_dict()) - checkpoint["state_dict"].keys():
            raise UserError(f"--resume: the checkpoint lacks {listing(missing)}: resume a run that trained an adapter")

    def content(self, model: nn.Module) -> dict[str, Any]:
        with model.ema_scope():
            adapter = current_adapter(model)
            tensors = {name: t.clone() if model.use_ema else t for name, t in adapter.tensors.items()}
        return {"tensors": tensors, "rank": adapter.rank, "alpha": adapter.alpha, "v": adapter.v}

    def _fingerprint(self, model: nn.Module) -> float:
        """The sum of the absolute values of W_0 of what trains, which differs between models."""
        weights = [parameter for name, parameter in model.named_parameters() if self.frozen.search(name)]
        return math.fsum(weight.detach().double().abs().sum().item() for weight in weights)


class DetailCheckpoints(AdapterCheckpoints):
    """The same of a run that trains a detail path."""

    key: ClassVar[str] = DETAIL_PATH
    frozen: ClassVar[re.Pattern] = re.compile(r"\.attn1\.")  # what the path corrects

    def content(self, model: nn.Module) -> dict[str, Any]:
        return {"settings": model.detail.settings, "tensors": dict(model.detail.state_dict())}
