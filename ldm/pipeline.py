"""PaintByExample: load once, call with pictures, get pictures.

edit = PaintByExample.load("configs/v1.yaml", "checkpoints/model.ckpt")
result = edit(image, mask, reference, scale=5, steps=50, seed=321)
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoint import choose_model, load_model
from ldm.conventions import image_to_tensor, mask_to_tensor, reference_to_tensor, resize_tensor, tensor_to_image
from ldm.images import name_of, upright_mask, upright_rgb
from ldm.lora import merge_into, read_adapter
from ldm.models.diffusion.conditioning import inpaint_channels, reference_token, unconditional_token
from ldm.models.diffusion.denoiser import guided_eps
from ldm.models.diffusion.sampling import Callback, Step, check_sampler, sample
from ldm.util import UserError

MAX_SCALE = 100.0


def pick_device(name: str | None = None) -> torch.device:
    """A device by name; None: CUDA, else Apple's MPS, else the CPU. Raises UserError where it is not available."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own way to say that it is not there
        reason = str(error).split("\n")[0].split(". ")[0]
        raise UserError(f"device {name!r} cannot be used here ({reason:.120}); use cuda, mps or cpu") from error
    return device


def check_request(
    scale: float, steps: int, sampler: str, eta: float, seeds: Sequence[int], num_timesteps: int = 1000
) -> None:
    """Raises UserError for the first number that is out of range; the arguments of PaintByExample.sample."""
    if not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
        raise UserError(f"scale {scale} is out of range; use 0 to {MAX_SCALE:.0f}, for instance 5")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed} is out of range; use 0 to 2^63 - 1")
    check_sampler(sampler, steps, eta, num_timesteps)


def out_of_memory_is_told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates what fills a GPU: its out-of-memory error as a UserError."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError("the GPU's memory is full; make fewer pictures at once, or smaller ones") from error

    return run


@dataclass(frozen=True)
class Inputs:
    """What the model sees of B edits."""

    image: Tensor  # (B,3,H,W) in [-1,1]
    mask: Tensor  # (B,1,H,W), 1 = keep
    reference: Tensor  # (B,3,S,S), CLIP-normalised

    @property
    def inpaint_image(self) -> Tensor:
        """(B,3,H,W): the image, grey (0) where it is to be painted."""
        return self.image * self.mask


class PaintByExample:
    """precision: "full" (float32) or "autocast" (half precision in the UNet and CLIP, float32 in the autoencoder and
    the sampler's arithmetic); None: autocast on CUDA, else full."""

    def __init__(self, model, precision: str | None = None):
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision or ("autocast" if self.device.type == "cuda" else "full")
        if self.precision not in ("full", "autocast"):
            raise UserError(f"precision {precision!r} is unknown; use full or autocast")

    @classmethod
    def load(
        cls,
        config: Any = None,
        ckpt: str | os.PathLike | None = None,
        device: str | None = None,
        precision: str | None = None,
        lora: str | os.PathLike | None = None,
        lora_scale: float = 1.0,
    ) -> PaintByExample:
        """config: a path or an OmegaConf node; ckpt: a path of any format, or "hub"; for what None stands, see
        ldm.checkpoint.choose_model; device: see pick_device; lora: an adapter that fine-tuning wrote, added to the
        weights lora_scale times (0 not at all, 1 as trained)."""
        where = pick_device(device)
        adapter = None if lora is None else read_adapter(lora)
        model = load_model(*choose_model(config, ckpt, adapted=lora is not None), where)
        if adapter:
            merge_into(model, adapter, lora_scale)
        return cls(model, precision)

    @property
    def native_size(self) -> int:
        """Side of the pictures that the model was made for, pixels (512 at full size)."""
        return self.model.image_size * self.model.first_stage_model.factor

    def size_for(self, image: Image.Image, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(H,W) at which to edit an upright image: as asked, else nearest to the image's shape and the native area
        among what the model can take. A square photo gives the native square, one of 4:3 384 x 512 at full size."""
        multiple = self.model.size_multiple
        for name, value in (("H", height), ("W", width)):
            if value is not None and (value < multiple or value % multiple):
                near = max(multiple, round(value / multiple) * multiple)
                raise UserError(f"{name} = {value}: the model takes multiples of {multiple}; use {near}")
            if value is not None and value > 8 * self.native_size:
                raise UserError(f"{name} = {value}: is too large; use at most {8 * self.native_size}")
        area, shape = self.native_size**2, image.width / image.height
        sides = range(multiple, 8 * self.native_size, multiple)
        sizes = [(h, w) for h in ([height] if height else sides) for w in ([width] if width else sides)]

        def misfit(size: tuple[int, int]) -> float:
            h, w = size
            return abs(math.log(w / h / shape)) + 0.1 * abs(math.log(h * w / area))

        return min(sizes, key=misfit)

    def prepare(
        self,
        image: Image.Image,
        mask: Image.Image,
        reference: Image.Image,
        height: int | None = None,
        width: int | None = None,
    ) -> Inputs:
        """Pictures of any size and mode -> Inputs with B = 1; H and W as in size_for. The mask follows the image.

        Raises UserError: a mask of another shape or with nothing to paint, H or W that the model cannot take."""
        white, picture = upright_mask(mask, image), upright_rgb(image)
        size = self.size_for(picture, height, width)[::-1]
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        if white.size != size:
            white = white.resize(size, Image.Resampling.BILINEAR)
        keep = mask_to_tensor(white)[None]
        factor = self.model.first_stage_model.factor
        if resize_tensor(keep, (size[1] // factor, size[0] // factor)).min() == 1:
            raise UserError(
                f"{name_of(mask, 'mask')}: its region is less than {factor} pixels wide at {size[0]} x {size[1]}, too "
                "small for the model to see; make it larger, or H and W"
            )
        return Inputs(
            image_to_tensor(picture)[None],
            keep,
            reference_to_tensor(upright_rgb(reference), self.model.cond_stage_model.image_size)[None],
        )

    def start(self, seed: int, height: int, width: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """All that is random in one picture, from its seed alone: noise of the masked image's posterior (4,h,w), then
        x_T (4,h,w), then the generator of each step's noise."""
        generator = torch.Generator().manual_seed(seed)
        factor = self.model.first_stage_model.factor
        shape = (self.model.channels, height // factor, width // factor)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), generator

    @out_of_memory_is_told
    @torch.no_grad()
    def sample(
        self,
        inputs: Inputs,
        seeds: Sequence[int],
        scale: float = 5.0,
        steps: int = 50,
        sampler: str = "plms",
        eta: float = 0.0,
        x_T: Tensor | None = None,
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Tensor:
        """Inputs of B edits and a seed for each -> pictures (B,3,H,W), about [-1,1]; the arguments of __call__.

        x_T (B,4,h,w): the start, instead of the seeds' own."""
        check_request(scale, steps, sampler, eta, seeds, self.model.num_timesteps)
        batch, _, height, width = inputs.image.shape
        assert len(seeds) == batch
        posterior_noise, start, generators = zip(*(self.start(seed, height, width) for seed in seeds), strict=True)

        def noise() -> Tensor:
            draws = [torch.randn(start[0].shape, generator=generator) for generator in generators]
            return torch.stack(draws).to(self.device)

        x_T = (torch.stack(start) if x_T is None else x_T).to(self.device)
        mask = inputs.mask.to(self.device)
        inpaint = inpaint_channels(
            self.model, inputs.inpaint_image.to(self.device), mask, torch.stack(posterior_noise).to(self.device)
        )
        with self._autocast():
            context = reference_token(self.model, inputs.reference.to(self.device)).float()
        uncond = unconditional_token(self.model, batch)

        def apply_model(x: Tensor, t: Tensor, contexts: Tensor) -> Tensor:
            with self._autocast():
                return self.model.apply_model(x, t, contexts).float()

        with tqdm(desc=sampler, total=steps, unit="step", disable=not progress) as bar:

            def on_step(step: Step) -> None:
                bar.total = step.total
                bar.update()
                if callback:
                    callback(step)

            eps = guided_eps(apply_model, inpaint, context, uncond, scale)
            z = sample(sampler, eps, x_T, self.model.schedule, steps, eta, noise, on_step)
        pictures = self.model.decode_first_stage(z)
        if not pictures.isfinite().all():
            cure = "use --precision full" if self.precision == "autocast" else "the checkpoint may be damaged"
            raise UserError(f"the result is not finite in {self.precision} precision; {cure}")
        return pictures

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "full":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image],
        mask: Image.Image | Sequence[Image.Image],
        reference: Image.Image | Sequence[Image.Image],
        scale: float = 5.0,
        steps: int = 50,
        seed: int = 321,
        n_samples: int = 1,
        sampler: str = "plms",
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Image.Image | list[Image.Image] | list[list[Image.Image]]:
        """Repaint the mask's white region of the image with the reference's object.

        image, mask, reference: PIL pictures of any size and mode, or lists of them, one edit per entry; a single
            picture goes with every entry of the others
        scale: guidance, 0 to 100; 1 follows the reference alone, 5 is usual
        steps: of the sampler ("plms", "ddim", "dpm++" or "unipc"), 1 to 999; eta: noise of ddim, 0 to 1
        seed: of the first sample of every edit; the others count up from it. A picture depends on its seed, not on how
            many are made beside it
        n_samples: pictures per edit
        height, width: of the edit, pixels, multiples of 64 at full size; see size_for
        batch_size: most pictures to make at once; more at once need more memory
        progress: show a bar; callback: called with a sampling.Step after every step

        -> a picture; with n_samples > 1 a list of pictures; for lists of inputs, a list of those.
        Raises UserError for what the pictures or numbers are wrong about."""
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} {value} is out of range; use 1 or more")
        groups = (image, mask, reference)
        lengths = {len(group) for group in groups if not isinstance(group, Image.Image)}
        if len(lengths) > 1:
            raise UserError(f"lists of {sorted(lengths)} pictures do not go together; give one mask and reference each")
        count = lengths.pop() if lengths else 1
        columns = [[group] * count if isinstance(group, Image.Image) else group for group in groups]
        if not all(isinstance(picture, Image.Image) for column in columns for picture in column):
            raise TypeError("image, mask and reference are PIL pictures, or lists of them")
        edits = [self.prepare(*row, height, width) for row in zip(*columns, strict=True)]
        seeds = [seed + i for i in range(n_samples)]

        results: list[list[Image.Image]] = [[] for _ in edits]
        for size in dict.fromkeys(edit.image.shape for edit in edits):  # a batch is of one size
            jobs = [(i, s) for i, edit in enumerate(edits) if edit.image.shape == size for s in seeds]
            for start in range(0, len(jobs), batch_size):
                rows, row_seeds = zip(*jobs[start : start + batch_size], strict=True)
                batch = stack([edits[i] for i in rows])
                pictures = self.sample(batch, row_seeds, scale, steps, sampler, eta, None, progress, callback)
                for i, picture in zip(rows, pictures, strict=True):
                    results[i].append(tensor_to_image(picture))
        per_edit = [pictures[0] if n_samples == 1 else pictures for pictures in results]
        return per_edit[0] if all(isinstance(group, Image.Image) for group in groups) else per_edit


def stack(edits: Sequence[Inputs]) -> Inputs:
    """Inputs of several edits of one size as one batch."""
    return Inputs(*(torch.cat([getattr(e, field) for e in edits]) for field in ("image", "mask", "reference")))
