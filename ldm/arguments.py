"""The flags that several scripts have: which model, and how it samples."""

from __future__ import annotations

import argparse

from ldm.util import UserError


def add_sampling(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """scale, sampler, plms, ddim_steps, ddim_eta. -> their group, for more."""
    how = parser.add_argument_group("sampling")
    how.add_argument("--scale", type=float, default=5.0, help="guidance: 1 none, larger follows the reference more (5)")
    how.add_argument("--sampler", help="plms, ddim, dpm++ or unipc (plms)")
    how.add_argument("--plms", action="store_true", help="the same as --sampler plms")
    how.add_argument(
        "--ddim_steps",
        type=int,
        default=50,
        help="sampling steps, of every sampler (50); plms and ddim take more where 1000 is no multiple",
    )
    how.add_argument("--ddim_eta", type=float, default=0.0, help="0 deterministic, 1 as noisy as DDPM; ddim only (0)")
    return how


def add_model(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """config, ckpt, lora, lora_scale, device, precision. -> their group, for more."""
    which = parser.add_argument_group("model")
    which.add_argument("--config", help="default: the released model's, configs/v1.yaml")
    which.add_argument("--ckpt", help="a .ckpt, a .safetensors, a diffusers folder, or hub to fetch the released model"
                       " (default: checkpoints/model.ckpt, what hub fetched, or the miniature model)")  # fmt: skip
    which.add_argument("--lora", help="an adapter, lora.safetensors, that fine-tuning wrote")
    which.add_argument("--lora_scale", type=float, default=1.0, help="how much of it: 0 none, 1 as it was trained (1)")
    which.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest there is)")
    which.add_argument("--precision", choices=("full", "autocast"), help="float32, or half precision"
                       " in the UNet (default: autocast on CUDA, else full)")  # fmt: skip
    return which


def sampler_of(opt: argparse.Namespace) -> str:
    """The sampler's name. Raises UserError where two flags name two."""
    if opt.plms and opt.sampler not in (None, "plms"):
        raise UserError(f"--plms and --sampler {opt.sampler} contradict each other; give one of them")
    return opt.sampler or "plms"
