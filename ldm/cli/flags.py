"""The flags that several commands share: which model, how to sample, how to edit; and their values as options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ldm.util import UserError

if TYPE_CHECKING:  # importing torch takes seconds, which --help must not
    from ldm.editing.options import Blending, Loading, Placement, Sampling, Selection


def add_sampling(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """scale, detail_scale, preset, sampler, plms, ddim_steps, ddim_eta. -> their group, for further flags; see
    sampling_from."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--scale", type=float, default=5.0, help="guidance: 1 none, larger follows the reference more closely (5)"
    )
    group.add_argument("--detail_scale", type=float, help="how much of --detail: 0 none, 1 as it was trained (1)")
    group.add_argument("--preset", help="fast or draft: sampler, steps and guidance with fewer evaluations (none)")
    group.add_argument("--sampler", help="plms, ddim, dpm++ or unipc (plms)")
    group.add_argument("--plms", action="store_true", help="the same as --sampler plms")
    group.add_argument(
        "--ddim_steps",
        "--steps",
        type=int,
        help="sampling steps, of every sampler (50); plms and ddim take more if 1000 is not a multiple of them",
    )
    group.add_argument(
        "--ddim_eta", "--eta", type=float, default=0.0, help="0 deterministic, 1 as noisy as DDPM; ddim only (0)"
    )
    return group


def context(word: str) -> float | str:
    """A number, or "photo"; argparse names the function in its error."""
    return word if word == "photo" else float(word)


def add_editing(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """invert, grow, context, windows, background, feather, strength, keep_layout, keep, mask_from_difference,
    reference_fit, reference_cutout, segment, mix, blend_latents, control, control_scale, best, best_preset, judge,
    watermark. -> their group; see placement_from, blending_from, sampling_from, selection_from, loading_from."""
    group = parser.add_argument_group("editing")
    group.add_argument("--invert", action="store_true", help="paint everything except the regions")
    group.add_argument("--grow", type=float, default=0.0, help="pixels to grow regions by; below 0: to shrink them by")
    group.add_argument(
        "--context",
        type=context,
        help="length of the window that the model sees, in lengths of the mask's box, or photo for the whole photo"
        " (default: chosen so that the mask covers a fifth of the window)",
    )
    group.add_argument(
        "--windows",
        action="store_true",
        help="paint at the photo's own pixels where they are more than the model takes, by overlapping windows (no)",
    )
    group.add_argument(
        "--background",
        default="exact",
        help="around the mask: exact keeps every pixel, feather all except a band, poisson every pixel and fits the"
        " colours inside, none keeps nothing of the window (exact)",
    )
    group.add_argument(
        "--feather", type=float, help="width of the band where painted and photo blend, pixels (1/64 of the window)"
    )
    group.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="below 1: start from the photo's own region, whose layout stays; 0 changes nothing (1)",
    )
    group.add_argument(
        "--keep_layout",
        metavar="METHOD",
        help="pnp, ddpm or ddim: start from noise that leads back to the photo, whose layout stays; pnp keeps most"
        " of it beside the reference's look, in twice the time (none)",
    )
    group.add_argument(
        "--keep", type=float, help="how much of it stays, 0 to 1, where nothing changes (0.2; ddim 0.4, pnp 0.6)"
    )
    group.add_argument(
        "--mask_from_difference",
        action="store_true",
        help="paint only what the reference changes inside a rough region: the outline is found (no)",
    )
    group.add_argument("--reference_fit", default="squash", help="to a square: squash, pad or crop (squash)")
    group.add_argument("--reference_cutout", action="store_true", help="leave out the references' background (no)")
    group.add_argument(
        "--segment",
        metavar="FOLDER",
        help="what finds objects, for --click, --snap and --reference_cutout: grabcut, hub to download SAM 2, or the"
        " folder of a SAM 2 (grabcut)",
    )
    group.add_argument(
        "--mix",
        type=float,
        help="of two references of a region: 0 the first, 1 the second; of three: how much of what distinguishes the"
        " third from the second is added to the first, 0 to 1 (their mean)",
    )
    group.add_argument(
        "--blend_latents",
        action="store_true",
        help="keep the photo around the mask in every step, as Blended Latent Diffusion does",
    )
    group.add_argument(
        "--control",
        metavar="FOLDER",
        help="of a ControlNet or T2I-Adapter for Stable Diffusion 1: its picture says where things are (none)",
    )
    group.add_argument("--control_scale", type=float, help="how much it says, 0 nothing to 2 (1)")
    add_selection(group)
    group.add_argument(
        "--watermark",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="an invisible one, spread over the whole picture: no background stays exact with it (no)",
    )
    return group


def add_selection(group: argparse._ArgumentGroup) -> None:
    """best, best_preset, judge; see selection_from."""
    group.add_argument(
        "--best",
        type=int,
        default=1,
        metavar="N",
        help="try N seeds, and paint the one whose region is most like the reference and whose edge shows least (1)",
    )
    group.add_argument("--best_preset", default="draft", help="the preset by which seeds are tried (draft)")
    group.add_argument(
        "--judge",
        metavar="FOLDER",
        default="clip",
        help="whose features say how like the reference a region is: clip, the model's own; dinov2, to download DINOv2;"
        " or the folder of a DINOv2 (clip)",
    )


class Repeated(argparse.Action):
    """A flag that may be given several times: its value, or the list of its values."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        before = getattr(namespace, self.dest, self.default)
        several = [*(before if isinstance(before, list) else [before]), values]
        setattr(namespace, self.dest, values if before is self.default else several)


def add_adapters(group: argparse._ActionsContainer) -> None:
    group.add_argument("--lora", action=Repeated, metavar="FILE", help="an adapter, lora.safetensors, that fine-tuning"
                       " or learn-object wrote; given several times, the changes add up")  # fmt: skip
    group.add_argument("--lora_scale", action=Repeated, type=float, default=1.0, metavar="S", help="how much of it, or"
                       " of each in their order: 0 none, 1 as it was trained (1)")  # fmt: skip


def add_model(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """config, ckpt, lora, lora_scale, detail, device, precision, compile, offload, decoder, safety_checker, plain. ->
    their group; see loading_from."""
    group = parser.add_argument_group("model")
    group.add_argument("--config", help="default: the released model's, configs/v1.yaml")
    group.add_argument("--ckpt", help="a .ckpt, a .safetensors, a diffusers folder, or hub to download the released"
                       " model (default: checkpoints/model.ckpt, else an earlier download, else the"
                       " miniature model)")  # fmt: skip
    add_adapters(group)
    group.add_argument("--detail", metavar="FILE", help="a detail path, detail.safetensors, that training wrote: more"
                       " of the reference than its class")  # fmt: skip
    group.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the fastest available)")
    group.add_argument("--precision", help="full: float32; bf16, fp16; autocast: the half precision that suits the"
                       " device (default: autocast on CUDA, else full)")  # fmt: skip
    group.add_argument("--compile", action="store_true", help="compile the networks, for NVIDIA GPUs: takes minutes the"
                       " first time, and is kept for later runs (no)")  # fmt: skip
    group.add_argument("--offload", action="store_true", help="for small GPUs: each network is on the GPU only while"
                       " it works (no)")  # fmt: skip
    group.add_argument("--decoder", metavar="FOLDER", help="an asymmetric autoencoder, whose decoder sees the photo"
                       " around the mask (the model's own)")  # fmt: skip
    group.add_argument("--safety_checker", metavar="FOLDER", default="off", help="Stable Diffusion's safety checker, or"
                       " hub to download it: what it flags becomes black (off)")  # fmt: skip
    group.add_argument("--plain", action="store_true", help="leave out what makes the networks fast, to compare (no)")
    return group


def sampling_from(opt: argparse.Namespace) -> Sampling:
    """Raises UserError: two flags that contradict each other, a value out of range."""
    from ldm.editing.options import Sampling

    if opt.plms and opt.sampler not in (None, "plms"):
        raise UserError(f"--plms and --sampler {opt.sampler} contradict each other: give one of them")
    return Sampling.choose(
        opt.preset,
        "plms" if opt.plms else opt.sampler,
        opt.ddim_steps,
        opt.scale,
        opt.ddim_eta,
        strength=getattr(opt, "strength", 1.0),
        **{name: getattr(opt, name, None) for name in ("keep_layout", "keep", "control_scale")},
        blend_latents=getattr(opt, "blend_latents", False),
        detail_scale=opt.detail_scale,
    )


def placement_from(opt: argparse.Namespace) -> Placement:
    """Raises UserError: a value out of range."""
    from ldm.editing.options import Placement

    height, width, together = (getattr(opt, name, None) for name in ("H", "W", "together"))
    return Placement(
        *(opt.context, height, width, opt.grow, opt.invert, opt.reference_fit),
        *(opt.reference_cutout, opt.segment, opt.mask_from_difference, opt.mix),
        together=False if together is None else tuple(together),
        windows=getattr(opt, "windows", False),
    )


def blending_from(opt: argparse.Namespace) -> Blending:
    """Raises UserError: a value out of range."""
    from ldm.editing.options import Blending

    return Blending(opt.background, opt.feather)


def selection_from(opt: argparse.Namespace) -> Selection:
    """Raises UserError: a value out of range."""
    from ldm.editing.options import Selection

    return Selection(opt.best, opt.best_preset, opt.judge)


def loading_from(opt: argparse.Namespace) -> Loading:
    """Raises UserError: flags that exclude each other."""
    from ldm.editing.options import Loading

    return Loading(
        config=opt.config,
        ckpt=opt.ckpt,
        device=opt.device,
        precision=opt.precision,
        lora=opt.lora,
        lora_scale=opt.lora_scale,
        detail=opt.detail,
        fast=not opt.plain,
        compiled=opt.compile,
        offload=opt.offload,
        decoder=opt.decoder,
        safety_checker=None if opt.safety_checker == "off" else opt.safety_checker,
        control=getattr(opt, "control", None),
    )


def check_range(opt: argparse.Namespace, flag: str, low: int = 1, high: int = 1000) -> None:
    """Raises UserError unless low <= --flag <= high."""
    value = getattr(opt, flag)
    if not low <= value <= high:
        raise UserError(f"--{flag} {value} is out of range: use {low} to {high}")
