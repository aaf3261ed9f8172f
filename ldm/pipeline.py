"""PaintByExample: load once, call with pictures, get pictures.

edit = PaintByExample.load("configs/v1.yaml", "checkpoints/model.ckpt")
result = edit(image, mask, reference, scale=5, steps=50, seed=321)

    image, mask, reference -> PlacedWindow around the mask -> Inputs (tensors) -> painted window -> pasted back
                              editing/window.py               plan                sample            PlacedWindow.paste
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoint import load_model
from ldm.checkpoint.locate import choose_model
from ldm.checkpoint.lora import merge_into, read_adapter
from ldm.conventions import resize_tensor, tensor_to_image
from ldm.editing.asymmetric_decoder import AsymmetricDecoder
from ldm.editing.checks import pick_device, report_out_of_memory
from ldm.editing.inputs import Inputs, PlannedEdit, SamplingTask, make_inputs, size_for, stack
from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import Blending, Context, Loading, Placement, Sampling, check_seed
from ldm.editing.references import References, fit_reference
from ldm.editing.regions import Region
from ldm.editing.safety import SafetyChecker
from ldm.editing.window import PlacedWindow
from ldm.fast.networks import Networks, check_network_options, choose_precision
from ldm.images import upright_mask, upright_rgb
from ldm.models.diffusion.conditioning import encode_to_latent, inpaint_channels, reference_token, unconditional_token
from ldm.models.diffusion.denoiser import blended_eps, guided_eps
from ldm.models.diffusion.sampling import Callback, Step, sample
from ldm.util import UserError, group_into_batches

Item = TypeVar("Item")
OnFailure = Callable[[Item, Exception], None]
OnPlan = Callable[[int, int, PlannedEdit], None]  # numbers of the photo and of the region, and the plan


@dataclass(frozen=True)
class SampledBatch(Generic[Item]):
    """Items that were sampled together, their pictures (B,3,H,W), about [-1,1], on the CPU, and how long it took."""

    items: list[Item]
    pictures: Tensor
    seconds: float


class PaintByExample:
    """Edits with one model, as its weights are when it is constructed.

    precision: "full" (float32), "bf16", "fp16" (half precision in the networks, float32 in their last layers and in the
    sampler's arithmetic) or "autocast", the half precision that suits the device; None: autocast on CUDA, else full.
    fast, compiled, offload: see Networks.

    decoder (an AsymmetricDecoder) and safety_checker (a SafetyChecker) take part in every edit if they are set."""

    def __init__(
        self,
        model,
        precision: str | None = None,
        fast: bool = True,
        compiled: bool = False,
        offload: torch.device | None = None,
    ):
        self.model = model
        self.device = offload or next(model.parameters()).device
        self.precision = choose_precision(self.device, precision)
        self.networks = Networks(model, self.precision, fast, compiled, offload)
        self.decoder: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.safety_checker: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def load(
        cls,
        config: Any = None,
        ckpt: str | os.PathLike | None = None,
        device: str | None = None,
        precision: str | None = None,
        lora: str | os.PathLike | None = None,
        lora_scale: float = 1.0,
        fast: bool = True,
        compiled: bool = False,
        offload: bool = False,
        decoder: str | os.PathLike | None = None,
        safety_checker: str | os.PathLike | None = None,
    ) -> PaintByExample:
        """The arguments are the fields of ldm.editing.options.Loading."""
        return cls.from_loading(
            Loading(config, ckpt, device, precision, lora, lora_scale, fast, compiled, offload, decoder, safety_checker)
        )

    @classmethod
    @report_out_of_memory
    def from_loading(cls, loading: Loading) -> PaintByExample:
        """Raises UserError: a file that is missing or damaged, choices that do not go together, memory that is full."""
        device = pick_device(loading.device)
        # Cheap checks come before gigabytes are read.
        check_network_options(device, choose_precision(device, loading.precision), loading.fast, loading.compiled)
        adapter = None if loading.lora is None else read_adapter(loading.lora)
        home, checker = "cpu" if loading.offload else device, None
        if loading.safety_checker is not None:
            checker = SafetyChecker.load(loading.safety_checker, home)
        model = load_model(*choose_model(loading.config, loading.ckpt, adapted=adapter is not None), home)
        if adapter:
            merge_into(model, adapter, loading.lora_scale)
        edit = cls(model, loading.precision, loading.fast, loading.compiled, device if loading.offload else None)
        edit.safety_checker = checker
        if loading.decoder is not None:
            edit.decoder = AsymmetricDecoder.load(loading.decoder, home, model.first_stage_model.factor, model.channels)
        return edit

    @property
    def native_size(self) -> int:
        """Side of the pictures that the model was made for, pixels (512 at full size)."""
        return self.model.image_size * self.model.first_stage_model.factor

    def size_for(self, image: Image.Image, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(H,W) at which the model paints an upright image, see ldm.editing.inputs.size_for: at full size 512 x 512 for
        a square, 384 x 512 for 4:3."""
        return size_for(image, self.native_size, self.model.size_multiple, height, width)

    def prepare(
        self,
        image: Image.Image,
        mask: Image.Image,
        reference: References,
        height: int | None = None,
        width: int | None = None,
        reference_fit: str = "squash",
    ) -> Inputs:
        """Pictures of any size and mode, as opened -> Inputs with B = 1, of the whole image.

        Raises UserError: a mask of other proportions or with nothing to paint, a height or width that the model cannot
        take."""
        references = reference if isinstance(reference, tuple) else (reference,)
        placement = Placement(height=height, width=width, reference_fit=reference_fit)
        return self._inputs(upright_rgb(image), upright_mask(mask, image), references, placement)

    def plan(
        self,
        photo: Image.Image,
        mask: Image.Image,
        references: Sequence[Image.Image],
        placement: Placement = Placement(),
    ) -> PlannedEdit:
        """One edit, ready to be sampled. photo: RGB, upright; mask: L, 255 = paint, of the photo's size, as
        Region.mask_in makes it; references: pictures of one object."""
        aspect = 1.0
        if placement.height and placement.width:
            self.size_for(photo, placement.height, placement.width)  # raises before the window takes their shape
            aspect = placement.width / placement.height
        place = PlacedWindow.around(photo, mask, self.native_size, placement.context, aspect)
        return PlannedEdit(place, self._inputs(place.picture, place.region, references, placement))

    def _inputs(
        self, picture: Image.Image, mask: Image.Image, references: Sequence[Image.Image], placement: Placement
    ) -> Inputs:
        size = self.size_for(picture, placement.height, placement.width)
        crops = [fit_reference(each, placement.reference_fit) for each in references]
        factor = self.model.first_stage_model.factor
        return make_inputs(picture, mask, crops, size, factor, self.model.cond_stage_model.image_size)

    def start(self, seed: int, height: int, width: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Everything that is random in one picture, from its seed alone: the noise of the masked image's posterior
        (4,h,w), then x_T (4,h,w), then the generator of each step's noise."""
        generator = torch.Generator().manual_seed(seed)
        factor = self.model.first_stage_model.factor
        shape = (self.model.channels, height // factor, width // factor)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), generator

    @report_out_of_memory
    @torch.no_grad()
    def sample(
        self,
        inputs: Inputs,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        *,
        starts: Sequence[int | None] | None = None,
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Tensor:
        """Inputs of B edits and a seed for each -> painted pictures (B,3,H,W), about [-1,1].

        starts: seeds of x_T, where they are not the edits' own; progress: show a bar; callback: called with a Step
        after every step. Raises UserError: a result that is not finite, memory that is full."""
        batch, _, height, width = inputs.image.shape
        assert len(seeds) == batch
        draws = [self.start(seed, height, width) for seed in seeds]
        posterior_noise, x_T, generators = (list(column) for column in zip(*draws, strict=True))
        for i, start in enumerate(starts or ()):
            if start is not None:
                x_T[i] = self.start(start, height, width)[1]

        def step_noise() -> Tensor:
            noise = [torch.randn(x_T[0].shape, generator=generator) for generator in generators]
            return torch.stack(noise).to(self.device)

        x = torch.stack(x_T).to(self.device)
        image, mask = inputs.image.to(self.device), inputs.mask.to(self.device)
        inpaint_image, reference = inputs.inpaint_image.to(self.device), inputs.reference.to(self.device)
        inpaint = inpaint_channels(self.networks, inpaint_image, mask, torch.stack(posterior_noise).to(self.device))
        tokens = reference_token(self.networks, reference)
        context = torch.stack([each.mean(dim=0) for each in tokens.split(inputs.counts or [1] * batch)])
        uncond = unconditional_token(self.networks, batch)
        source = None
        if sampling.strength < 1 or sampling.blend_latents:
            source = encode_to_latent(self.networks, image, torch.zeros_like(x))  # the posterior's mean

        denoiser = functools.partial(self.networks.denoiser, refresh=sampling.refresh)
        eps = guided_eps(denoiser, inpaint, context, uncond, sampling.scale, sampling.interval)
        if sampling.blend_latents:
            eps = blended_eps(eps, source, inpaint[:, -1:], self.model.schedule)
        with (
            tqdm(desc=sampling.sampler, total=sampling.steps, unit="step", disable=not progress) as bar,
            self.networks.unet_on_device(),
        ):

            def on_step(step: Step) -> None:
                bar.total = step.total
                bar.update()
                if callback:
                    callback(step)

            z = sample(
                *(sampling.sampler, eps, x, self.model.schedule, sampling.steps, sampling.eta, step_noise, on_step),
                source=source,
                strength=sampling.strength,
            )
        return self._decode(z, image, mask)

    def _decode(self, z: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """Scaled latents (B,4,h,w) -> pictures (B,3,H,W), which the safety checker has seen."""
        if self.decoder is None:
            pictures = self.networks.decode_first_stage(z)
        else:
            pictures = self.decoder(z / self.model.scale_factor, image, mask)
        if not pictures.isfinite().all():
            cure = "use --precision full" if self.precision != "full" else "the checkpoint may be damaged"
            raise UserError(f"the result is not finite in {self.precision} precision: {cure}")
        return self.safety_checker(pictures) if self.safety_checker else pictures

    def batch_key(self, inputs: Inputs, sampling: Sampling) -> Hashable:
        """Edits with equal keys can be sampled together without a picture depending on the others in its batch."""
        factor, (height, width) = self.model.first_stage_model.factor, inputs.image.shape[-2:]
        keep = resize_tensor(inputs.mask, (height // factor, width // factor))
        return height, width, sampling, self.networks.rectangle(keep, sampling.refresh)

    def sample_in_batches(
        self,
        items: Iterable[Item],
        task_of: Callable[[Item], SamplingTask],
        batch_size: int,
        *,
        progress: bool = False,
        callback: Callback | None = None,
        on_failure: OnFailure | None = None,
    ) -> Iterator[SampledBatch[Item]]:
        """Sample the task of every item, up to batch_size of them at a time, as soon as a batch is full.

        on_failure: with it, a batch that fails is sampled again one by one, and called with every item that fails
        alone and its error; without it, the error is raised."""

        def key(item: Item) -> Hashable:
            task = task_of(item)
            return self.batch_key(task.inputs, task.sampling)

        for full in group_into_batches(items, batch_size, key):
            batches = [full]
            while batches:
                batch = batches.pop(0)
                tasks = [task_of(item) for item in batch]
                begin = time.perf_counter()
                try:
                    pictures = self.sample(
                        stack([task.inputs for task in tasks]),
                        [task.seed for task in tasks],
                        tasks[0].sampling,
                        starts=[task.start for task in tasks],
                        progress=progress,
                        callback=callback,
                    ).cpu()
                except Exception as error:
                    if on_failure is None:
                        raise
                    if len(batch) == 1:
                        on_failure(batch[0], error)
                    else:
                        batches = [[item] for item in batch]
                else:
                    yield SampledBatch(batch, pictures, time.perf_counter() - begin)

    def repaint(
        self,
        photos: Sequence[MarkedPhoto],
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        placement: Placement = Placement(),
        blending: Blending = Blending(),
        *,
        batch_size: int = 4,
        starts: Sequence[int | None] | None = None,
        progress: bool = True,
        callback: Callback | None = None,
        on_plan: OnPlan | None = None,
    ) -> list[Image.Image]:
        """Paint the regions of each photo, one after the other, each with its references -> whole pictures.

        seeds, starts: one for each photo, see `sample`; on_plan: called with every plan before it is sampled."""
        pictures = [marked.photo for marked in photos]
        for number in range(max(len(marked.masks) for marked in photos)):
            plans: dict[int, PlannedEdit] = {}
            for i, marked in enumerate(photos):
                if number >= len(marked.masks):
                    continue
                same = next((j for j in plans if photos[j] is marked and pictures[j] is pictures[i]), None)
                plans[i] = (
                    self.plan(pictures[i], marked.masks[number], marked.references[number], placement)
                    if same is None
                    else plans[same]
                )
                if on_plan:
                    on_plan(i, number, plans[i])

            def task_of(i: int, plans: dict[int, PlannedEdit] = plans) -> SamplingTask:
                return SamplingTask(plans[i].inputs, seeds[i], sampling, starts[i] if starts else None)

            for batch in self.sample_in_batches(plans, task_of, batch_size, progress=progress, callback=callback):
                for i, painted in zip(batch.items, batch.pictures, strict=True):
                    pictures[i] = plans[i].place.paste(tensor_to_image(painted), photos[i].blending(blending))
        return pictures

    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image],
        mask: Image.Image | Sequence[Image.Image] | None = None,
        reference: References | Sequence[References] | None = None,
        scale: float = 5.0,
        steps: int | None = None,
        seed: int | Sequence[int] = 321,
        n_samples: int = 1,
        sampler: str | None = None,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        progress: bool = True,
        callback: Callback | None = None,
        preset: str | None = None,
        *,
        background: str = "exact",
        feather: float | None = None,
        context: Context = None,
        strength: float = 1.0,
        reference_fit: str = "squash",
        blend_latents: bool = False,
        grow: float = 0.0,
        invert: bool = False,
        regions: Sequence[Region] | None = None,
        references: Sequence[References] | None = None,
    ) -> Image.Image | list[Image.Image] | list[list[Image.Image]]:
        """Repaint a region of an image, or several, each with the object of its reference.

        image, mask, reference: PIL pictures of any size and mode, or lists of them, one edit per entry; a single
            picture goes with every entry of the others. A mask is white (255) where to paint. A tuple of references is
            several pictures of one object
        regions, references: instead of mask and reference, several regions of the image, painted one after the other,
            and a reference for each, or one for all
        scale, sampler, steps, eta, strength, blend_latents: see ldm.editing.options.Sampling; steps 50 and sampler
            "plms" if not given; preset: "fast" or "draft", instead of sampler and steps
        seed: of the first sample of every edit, or a list, one per edit; further samples count up from it. A picture
            depends on its seed, not on the others that are made with it
        n_samples: pictures per edit
        height, width, context, grow, invert, reference_fit: see ldm.editing.options.Placement
        background, feather: see ldm.editing.options.Blending
        batch_size: largest number of pictures to make at once, which decides how much memory it takes
        progress: show a bar; callback: called with a sampling.Step after every step

        -> a picture of the image's size, RGB; with n_samples > 1 a list of them; for lists of inputs, a list of those.
        Raises UserError for what is wrong with the pictures or numbers."""
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} {value} is out of range: use 1 or more")
        blending = Blending(background, feather)
        sampling = Sampling.choose(preset, sampler, steps, scale, eta, strength, blend_latents)
        placement = Placement(context, height, width, grow, invert, reference_fit)
        if regions is None and references is None:
            columns = (image, mask, reference, seed)
            rows = [(i, [Region(mask=m)], [r], first) for i, m, r, first in _rows(*columns)]
        else:
            if mask is not None or reference is not None or not regions or not references:
                raise UserError("give mask and reference, or regions and references: one reference for each region")
            columns = (image, seed)
            rows = [(i, regions, references, first) for i, first in _rows(*columns)]
        seeds = [first + i for *_, first in rows for i in range(n_samples)]
        for each in seeds:
            check_seed(each)
        marked = [MarkedPhoto.mark(i, where, what, placement) for i, where, what, _ in rows]
        pictures = self.repaint(
            [each for each in marked for _ in range(n_samples)],
            seeds,
            sampling,
            placement,
            blending,
            batch_size=batch_size,
            progress=progress,
            callback=callback,
        )
        if n_samples > 1:
            pictures = [pictures[i : i + n_samples] for i in range(0, len(pictures), n_samples)]
        return pictures[0] if all(isinstance(column, ONE_FOR_ALL) for column in columns) else pictures


ONE_FOR_ALL = (Image.Image, tuple, int)  # types of an argument that goes with every entry of the lists beside it


def _rows(*columns: Any) -> list[tuple[Any, ...]]:
    """Columns of a call, each a list or one value for all rows -> the rows. Raises UserError, TypeError."""
    if not all(isinstance(column, (*ONE_FOR_ALL, list, range)) for column in columns):
        raise TypeError("image, mask and reference are PIL pictures, or lists of them, and seed a number or a list")
    lengths = {len(column) for column in columns if not isinstance(column, ONE_FOR_ALL)}
    if len(lengths) > 1:
        raise UserError(f"lists of {sorted(lengths)} pictures do not go together: give one mask and reference each")
    count = lengths.pop() if lengths else 1
    expanded = [[column] * count if isinstance(column, ONE_FOR_ALL) else column for column in columns]
    return list(zip(*expanded, strict=True))
