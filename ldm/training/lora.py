"""Training a LoRA adapter (Hu et al. 2021, arXiv 2106.09685): fine-tuning in limited memory.

W = W_0 + α/r · B A (section 4.1): A starts as random numbers and B as zeros, W_0 is frozen. Training runs on peft's
layers, which compute the two terms separately. The symbols, the file and merging: ldm/checkpoint/lora.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback
from torch import nn

from ldm.checkpoint.lora import A, Adapter, B
from ldm.checkpoint.names import UNET
from ldm.util import UserError, listing

PEFT_A, PEFT_B = ".lora_A.default.weight", ".lora_B.default.weight"  # peft's names inside the model


def inject_adapter(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Puts peft's layers into a LatentDiffusion's UNet and freezes everything else: only the factors A and B train.

    config: the config's model.lora section: rank; alpha; target_modules, a list of the last parts of layers' names.
    Raises UserError: a missing or unknown key, a bad value, a target that matches no layer."""
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
    model.requires_grad_(False)
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
        for peft_name, published in ((PEFT_A, A), (PEFT_B, B)):
            if name.endswith(peft_name):
                tensors[UNET + name.removesuffix(peft_name) + published] = parameter.detach()
    settings = unet.peft_config["default"]
    return Adapter(tensors, settings.r, settings.lora_alpha)


class AdapterCheckpoints(Callback):
    """Keeps the frozen weights out of a run's checkpoints. These contain the factors A and B; resuming reads the frozen
    weights from model.pretrained_model again.

    checkpoint["lora"] is the adapter for inference, with averaged factors if the run keeps an average."""

    def __init__(self, model: nn.Module):
        model.strict_loading = False
        self.base = _fingerprint(model)

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
        kept = {n: t for n, t in checkpoint["state_dict"].items() if "lora_" in n or n.startswith("model_ema.")}
        checkpoint["state_dict"] = kept
        with pl_module.ema_scope():
            adapter = current_adapter(pl_module)
            tensors = {name: t.clone() if pl_module.use_ema else t for name, t in adapter.tensors.items()}
        checkpoint["lora"] = {"tensors": tensors, "rank": adapter.rank, "alpha": adapter.alpha}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        factors = {name for name in pl_module.state_dict() if "lora_" in name}
        if missing := factors - checkpoint["state_dict"].keys():
            raise UserError(f"--resume: the checkpoint lacks {listing(missing)}: resume a run that trained an adapter")


def _fingerprint(model: nn.Module) -> float:
    """The sum of the absolute values of the adapted layers' frozen weights, which differs between base models."""
    weights = [p for name, p in model.named_parameters() if name.endswith(".base_layer.weight")]
    return math.fsum(weight.detach().double().abs().sum().item() for weight in weights)
