"""What an edit can be asked for: how to sample, how to blend, where to place, and which model to load.

Each is a small frozen dataclass that is checked where it is made and passed on whole. The fields are named like the
keywords of PaintByExample and, where there is one, like the setting inside a written picture."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ldm.models.diffusion.presets import PRESETS, resolve_preset
from ldm.models.diffusion.sampling import check_sampler
from ldm.models.diffusion.stability import stability_note
from ldm.util import UserError, UserNote

MAX_SCALE = 100.0
MAX_FEATHER = 10_000.0  # pixels
MAX_CONTEXT = 1000.0
MAX_BEST = 64
NUM_TIMESTEPS = 1000  # of the published noise schedule; a model with fewer is checked again when it samples
BACKGROUNDS = ("exact", "feather", "poisson", "none")
REFERENCE_FITS = ("squash", "pad", "crop")
KEEP_LAYOUT = {"ddpm": 0.2, "ddim": 0.4, "pnp": 0.6}  # methods, and how much each keeps unless keep says so
WHOLE_PHOTO = "photo"  # as context: the window is the whole photo, as published
LOADED_FILES = ("config", "ckpt", "lora", "detail", "decoder", "safety_checker", "control")  # fields of Loading

Context = float | str | None
Layer = float | Sequence[float]  # what a region has of its own: a scale, or a scale and a strength


def check_scale(scale: float) -> None:
    """Raises UserError for a guidance scale that is out of range."""
    if not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
        raise UserError(f"scale {scale} is out of range: use 0 to {MAX_SCALE:.0f}, for instance 5")


def check_strength(strength: float) -> None:
    """Raises UserError for a strength that is out of range."""
    if not 0 <= strength <= 1:
        raise UserError(f"strength {strength} is out of range: use 0 (nothing changes) to 1 (everything is new)")


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    scale: guidance, 0 to 100; 1 follows the reference alone, 5 is usual
    sampler, steps, eta: "plms", "ddim", "dpm++" or "unipc", 1 to 999 steps, and DDIM's noise, 0 to 1
    interval: first and last timestep with guidance (Kynkäänniemi et al. 2024); None: guidance at all timesteps
    refresh: with n, every n-th evaluation of the UNet computes the whole picture, the others a rectangle around the
        region (ldm/fast/region.py); 1: all compute the whole picture
    strength: 1 starts from noise; below, from the photo's own region with less noise (SDEdit, Meng et al. 2022)
    blend_latents: keep the photo around the mask in every step (Blended Latent Diffusion, Avrahami et al. 2023)
    keep_layout: start from noise that leads back to the photo, by "ddpm", "ddim" or "pnp" (ldm/methods/
        inversion.py), and sample by ddim; keep: how much of the layout stays, 0 to 1, where nothing changes; None: as
        KEEP_LAYOUT says
    control_scale: how much the loaded ControlNet or T2I-Adapter adds, 0 (nothing) to 2; None: 1
    detail_scale: strength of the loaded detail path, 0 (nothing) to 1; None: 1

    Raises UserError for the first value that is out of range."""

    scale: float = 5.0
    sampler: str = "plms"
    steps: int = 50
    eta: float = 0.0
    interval: tuple[int, int] | None = None
    refresh: int = 1
    strength: float = 1.0
    blend_latents: bool = False
    keep_layout: str | None = None
    keep: float | None = None
    control_scale: float | None = None
    detail_scale: float | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_strength(self.strength)
        if self.control_scale is not None and not 0 <= self.control_scale <= 2:
            raise UserError(f"control_scale {self.control_scale} is out of range: use 0 (no control) to 2, usually 1")
        if self.detail_scale is not None and not 0 <= self.detail_scale <= 1:
            raise UserError(
                f"detail_scale {self.detail_scale} is out of range: use 0 (nothing of it) to 1 (as it was trained)"
            )
        check_sampler(self.sampler, self.steps, self.eta, NUM_TIMESTEPS)
        if self.interval is not None:
            object.__setattr__(self, "interval", tuple(self.interval))  # a list cannot be part of a batch's key
        if self.interval is not None and not (len(self.interval) == 2 and 0 <= self.interval[0] <= self.interval[1]):
            raise UserError(
                f"interval {self.interval} is not an interval of timesteps: give the first and the last, for instance"
                " (200, 999)"
            )
        if self.refresh < 1:
            raise UserError(f"refresh {self.refresh} is out of range: use 1 (compute everything) or more")
        self._check_layout()

    def _check_layout(self) -> None:
        if self.keep_layout is None:
            if self.keep is not None:
                raise UserError(f"keep {self.keep} does nothing by itself: give keep_layout pnp beside it")
            return
        if self.keep_layout not in KEEP_LAYOUT:
            raise UserError(f"keep_layout {self.keep_layout!r} is unknown: use one of {', '.join(KEEP_LAYOUT)}")
        if self.strength < 1:
            raise UserError(
                f"keep_layout and strength {self.strength} are two ways to keep the layout: give one of them; keep 0 to"
                " 1 says how much keep_layout keeps"
            )
        if self.sampler == "plms":  # the default
            object.__setattr__(self, "sampler", "ddim")
        if self.sampler != "ddim" or self.eta > 0 or self.refresh > 1:
            raise UserError("keep_layout samples by ddim with noise of its own: leave out preset, sampler and eta")
        if self.keep is None:
            object.__setattr__(self, "keep", KEEP_LAYOUT[self.keep_layout])
        elif not 0 <= self.keep <= 1:
            raise UserError(f"keep {self.keep} is out of range: use 0 (much is new) to 1 (nothing changes)")

    @classmethod
    def choose(
        cls,
        preset: str | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        scale: float = 5.0,
        eta: float = 0.0,
        strength: float = 1.0,
        blend_latents: bool = False,
        keep_layout: str | None = None,
        keep: float | None = None,
        control_scale: float | None = None,
        detail_scale: float | None = None,
    ) -> Sampling:
        """By the name of a preset, or else by sampler and steps; where they are not given, 50 steps of PLMS, or of DDIM
        with keep_layout. Warns with a UserNote if the scale is too large for these steps.

        Raises UserError: an unknown preset, a preset together with a sampler or steps, a value out of range."""
        if keep_layout is not None and sampler not in (None, "ddim"):
            raise UserError(f"keep_layout samples by ddim, not by {sampler}: leave out one of them")
        how = resolve_preset(preset, sampler, steps)
        kept = (strength, blend_latents, keep_layout, keep, control_scale, detail_scale)
        chosen = cls(scale, how.sampler, how.steps, eta, how.interval, how.refresh, *kept)
        if note := stability_note(chosen.sampler, chosen.steps, scale):
            warnings.warn(note, UserNote, stacklevel=2)
        return chosen


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that is out of range."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is out of range: use 0 to 2^63 - 1")


@dataclass(frozen=True)
class Selection:
    """Best of N: which of several seeds a picture is painted with, see ldm.editing.best.

    best: seeds that are tried for each picture, 1 to 64, counting up from its own; 1: nothing is tried
    best_preset: the preset by which they are tried
    judge: whose features say how like the reference a region is: "clip", the model's own; "dinov2", downloaded once; or
        the folder of a DINOv2

    Raises UserError for a number that is out of range or an unknown preset."""

    best: int = 1
    best_preset: str = "draft"
    judge: str = "clip"

    def __post_init__(self) -> None:
        if not 1 <= self.best <= MAX_BEST:
            raise UserError(f"best {self.best} is out of range: use 1 (one seed, no choice) to {MAX_BEST}")
        if self.best_preset not in PRESETS:
            raise UserError(f"best_preset {self.best_preset!r} is unknown: use one of {', '.join(PRESETS)}")

    def seeds(self, first: int) -> range:
        """The seeds that are tried for a picture. Raises UserError: one is out of range."""
        for seed in (first, first + self.best - 1):
            check_seed(seed)
        return range(first, first + self.best)

    @property
    def settings(self) -> dict[str, Any]:
        """What of it is written into pictures; None where nothing is tried."""
        return {field.name: None if self.best == 1 else getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Blending:
    """How the painted window goes back into the photo; ldm/editing/background.py has the table.

    background: "exact", "feather", "poisson" or "none"
    feather: width of the band over which painted and photo blend, pixels of the photo; None: 1/64 of the window

    Raises UserError for an unknown background or a width that is out of range."""

    background: str = "exact"
    feather: float | None = None

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise UserError(f"background {self.background!r} is unknown: use one of {', '.join(BACKGROUNDS)}")
        if self.feather is not None and not 0 <= self.feather <= MAX_FEATHER:
            raise UserError(f"feather {self.feather} is out of range: use 0 to {MAX_FEATHER:.0f} pixels")


@dataclass(frozen=True)
class Placement:
    """Where in the photo the model paints, and how pictures become what it sees.

    context: length of the window in lengths of the mask's box, 1 to 1000; "photo": the whole photo, as published;
        None: chosen so that the mask covers a fifth of the window
    height, width: at which the model paints the window, pixels, multiples of 64 at full size; None: by its shape
    grow: pixels by which regions are made larger; below 0: smaller
    invert: paint everything except the regions
    reference_fit: how a reference becomes square: "squash" (as published), "pad" or "crop"
    reference_cutout: leave out the background of references that are not transparent already
    mask_from_difference: paint only what the reference changes inside a rough region (ldm/methods/outline.py)
    segment: what finds objects: None for GrabCut, "hub" for SAM 2, or its folder; see ldm.segmentation.objects
    mix: of two references, 0 for the first to 1 for the second; of three, the first and how much, 0 to 1, of what
        distinguishes the third from the second; None: the mean of however many there are
    together: paint all regions at once, in one window around them, instead of one after the other; numbers: so, with
        a guidance scale for each region, or a scale and a strength
    windows: paint a window that has more pixels than the model's own size at these pixels, or at height and width, by
        overlapping windows of that size (ldm/methods/windows.py)

    Raises UserError for a value that is out of range, an unknown reference_fit, choices that exclude each other."""

    context: Context = None
    height: int | None = None
    width: int | None = None
    grow: float = 0.0
    invert: bool = False
    reference_fit: str = "squash"
    reference_cutout: bool = False
    segment: str | None = None
    mask_from_difference: bool = False
    mix: float | None = None
    together: bool | Sequence[Layer] = False
    windows: bool = False

    def __post_init__(self) -> None:
        if self.mix is not None and not 0 <= self.mix <= 1:
            raise UserError(f"mix {self.mix} is out of range: use 0 (the first reference) to 1")
        if not isinstance(self.together, bool):
            object.__setattr__(self, "together", tuple(map(_layer, self.together)) or True)
        for name in ("invert", "mask_from_difference"):
            if self.together and getattr(self, name):
                raise UserError(f"together and {name} exclude each other: leave one of them out")
        if self.segment == "grabcut":
            object.__setattr__(self, "segment", None)
        context = self.context
        if context not in (None, WHOLE_PHOTO) and not (
            isinstance(context, int | float) and 1 <= context <= MAX_CONTEXT
        ):
            raise UserError(
                f"context {context} is out of range: use {WHOLE_PHOTO}, or 1 to {MAX_CONTEXT:.0f}, the length of the"
                " window in lengths of the mask's box"
            )
        if self.reference_fit not in REFERENCE_FITS:
            raise UserError(f"reference_fit {self.reference_fit!r} is unknown: use one of {', '.join(REFERENCE_FITS)}")


def _layer(own: Layer) -> Layer:
    """What a region has of its own, checked. Raises UserError."""
    values = tuple(own) if isinstance(own, Sequence) else (own,)
    if not 1 <= len(values) <= 2:
        raise UserError(f"together has {len(values)} numbers for a region: give its scale, or its scale and strength")
    for check, value in zip((check_scale, check_strength), values, strict=False):
        check(value)
    return values[0] if len(values) == 1 else values


def check_choices(placement: Placement, sampling: Sampling) -> None:
    """Raises UserError: choices of the two that exclude each other."""
    if placement.together and sampling.keep_layout:
        raise UserError("together and keep_layout exclude each other: leave one of them out")
    if placement.windows and sampling.keep_layout == "pnp":
        raise UserError("windows and keep_layout pnp exclude each other: leave one of them out, or use ddpm")


@dataclass(frozen=True)
class Loading:
    """Which model to load, and how its networks run.

    config: a path or an OmegaConf node; ckpt: a path of any format, or "hub"; what None stands for:
        ldm.checkpoint.locate.choose_model
    device: see ldm.editing.checks.pick_device; precision: "full", "bf16", "fp16", "autocast" or None, see
        ldm.fast.networks
    lora, lora_scale: an adapter that fine-tuning wrote, and how much of it is added (0 nothing, 1 as trained); or
        several, whose changes add up, with a number for each or for all
    detail: a detail path that training wrote; Sampling's detail_scale says how much of it is added
    fast, compiled, offload: see ldm.fast.networks.Networks; offload: keep the networks on the CPU, and on the device
        only the one at work
    decoder: folder of an asymmetric autoencoder; safety_checker: folder of Stable Diffusion's, or "hub"
    control: folder of a ControlNet or T2I-Adapter; every edit then needs its control image

    Raises UserError for choices that exclude each other."""

    config: Any = None
    ckpt: str | os.PathLike | None = None
    device: str | None = None
    precision: str | None = None
    lora: str | os.PathLike | Sequence[str | os.PathLike] | None = None
    lora_scale: float | Sequence[float] = 1.0
    fast: bool = True
    compiled: bool = False
    offload: bool = False
    decoder: str | os.PathLike | None = None
    safety_checker: str | os.PathLike | None = None
    control: str | os.PathLike | None = None
    detail: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        if self.offload and self.compiled:
            raise UserError("--offload and --compile exclude each other: leave one of them out")
        if self.control is not None and self.compiled:
            raise UserError("--control and --compile exclude each other: leave one of them out")

    @property
    def settings(self) -> dict[str, Any]:
        """What of it is written into pictures: files by their paths; a config that is not a file is left out."""
        files = {name: getattr(self, name) for name in LOADED_FILES}
        paths: dict[str, Any] = {
            name: os.fspath(file) for name, file in files.items() if isinstance(file, str | os.PathLike)
        }
        if isinstance(self.lora, Sequence) and not isinstance(self.lora, str):
            paths["lora"] = [os.fspath(file) for file in self.lora]
        return paths | ({} if self.lora is None else {"lora_scale": self.lora_scale})


def settings_of(*options: Sampling | Blending | Placement) -> dict[str, Any]:
    """The options' fields as they are written into pictures."""
    return {field.name: getattr(each, field.name) for each in options for field in fields(each)}
