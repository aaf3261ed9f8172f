"""The flags that several scripts have: which model, and how it samples."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.models.diffusion.presets import PRESETS, resolve_preset
from ldm.util import UserError


def add_sampling(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """scale, preset, sampler, plms, ddim_steps, ddim_eta. -> their group, for more; sampling_of reads them."""
    how = parser.add_argument_group("sampling")
    how.add_argument("--scale", type=float, default=5.0, help="guidance: 1 none, larger follows the reference more (5)")
    how.add_argument(
        "--preset", help=f"{' or '.join(PRESETS)}: sampler, steps and guidance in fewer evaluations (none)"
    )
    how.add_argument("--sampler", help="plms, ddim, dpm++ or unipc (plms)")
    how.add_argument("--plms", action="store_true", help="the same as --sampler plms")
    how.add_argument(
        "--ddim_steps",
        type=int,
        help="sampling steps, of every sampler (50); plms and ddim take more where 1000 is no multiple",
    )
    how.add_argument("--ddim_eta", type=float, default=0.0, help="0 deterministic, 1 as noisy as DDPM; ddim only (0)")
    return how


def context(word: str) -> float | str:
    """A number, or "photo"; argparse names the function in its error."""
    return word if word == "photo" else float(word)


def add_editing(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """invert, grow, context, background, feather, strength, reference_fit, blend_latents, watermark. -> their group,
    for more."""
    how = parser.add_argument_group("editing")
    how.add_argument("--invert", action="store_true", help="paint all but the regions")
    how.add_argument("--grow", type=float, default=0.0, help="make regions so many pixels larger; below 0, smaller")
    how.add_argument(
        "--context",
        type=context,
        help="how much of the photo the model sees: a window so many times as long as the mask's box, or photo for all"
        " of it (default: so much that the mask covers a fifth)",
    )
    how.add_argument(
        "--background",
        default="exact",
        help="around the mask: exact keeps every pixel, feather all but a band, poisson every pixel and fits the"
        " colours inside, none nothing (exact)",
    )
    how.add_argument(
        "--feather", type=float, help="width of the band where the painted blends in, pixels (1/64 of the window)"
    )
    how.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="below 1: starts from the photo's own region, whose layout stays; 0 changes nothing (1)",
    )
    how.add_argument("--reference_fit", default="squash", help="to a square: squash, pad or crop (squash)")
    how.add_argument(
        "--blend_latents",
        action="store_true",
        help="keep the photo around the mask in every step, as Blended Latent Diffusion does",
    )
    how.add_argument(
        "--watermark",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="an invisible one, spread over the whole picture: no background is exact with it (no)",
    )
    return how


def add_model(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """config, ckpt, lora, lora_scale, device, precision, compile, offload, decoder, safety_checker, plain. -> their
    group; loading_of reads them."""
    which = parser.add_argument_group("model")
    which.add_argument("--config", help="default: the released model's, configs/v1.yaml")
    which.add_argument("--ckpt", help="a .ckpt, a .safetensors, a diffusers folder, or hub to fetch the released model"
                       " (default: checkpoints/model.ckpt, what hub fetched, or the miniature model)")  # fmt: skip
    which.add_argument("--lora", help="an adapter, lora.safetensors, that fine-tuning wrote")
    which.add_argument("--lora_scale", type=float, default=1.0, help="how much of it: 0 none, 1 as it was trained (1)")
    which.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest there is)")
    which.add_argument("--precision", help="full: float32; bf16, fp16; autocast: the half precision that suits the"
                       " device (default: autocast on CUDA, else full)")  # fmt: skip
    which.add_argument("--compile", action="store_true", help="compile the networks, for NVIDIA's GPUs: takes minutes"
                       " the first time, and is kept for later runs (no)")  # fmt: skip
    which.add_argument("--offload", action="store_true", help="for small GPUs: a network is on it only while it works"
                       " (no)")  # fmt: skip
    which.add_argument("--decoder", metavar="FOLDER", help="of an asymmetric autoencoder, whose decoder sees the photo"
                       " around the mask (the model's own)")  # fmt: skip
    which.add_argument("--safety_checker", metavar="FOLDER", default="off", help="of Stable Diffusion's safety checker,"
                       " or hub to fetch it: what it flags becomes black (off)")  # fmt: skip
    which.add_argument("--plain", action="store_true", help="without what makes the networks fast, to compare (no)")
    return which


def sampling_of(opt: argparse.Namespace) -> dict[str, Any]:
    """scale, sampler, steps, eta, interval of PaintByExample.sample. Raises UserError where two flags contradict."""
    if opt.plms and opt.sampler not in (None, "plms"):
        raise UserError(f"--plms and --sampler {opt.sampler} contradict each other; give one of them")
    how = resolve_preset(opt.preset, "plms" if opt.plms else opt.sampler, opt.ddim_steps)
    return {"scale": opt.scale, **how._asdict(), "eta": opt.ddim_eta}


def loading_of(opt: argparse.Namespace) -> dict[str, Any]:
    """The arguments of PaintByExample.load but config and ckpt."""
    how = {name: getattr(opt, name) for name in ("device", "precision", "lora", "lora_scale", "offload", "decoder")}
    how["safety_checker"] = None if opt.safety_checker == "off" else opt.safety_checker
    return how | {"fast": not opt.plain, "compiled": opt.compile}
