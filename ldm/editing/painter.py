"""Sampling of edits in batches: what the model sees, as tensors -> what it paints."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from PIL import Image, ImageChops
from torch import Tensor
from tqdm import tqdm

from ldm.conventions import mask_to_image, mask_to_tensor, pixels_to_tensor, resize_tensor
from ldm.editing.checks import report_out_of_memory
from ldm.editing.details import edit_details
from ldm.editing.eps import EpsOf, field_of
from ldm.editing.inputs import Condition, Inputs, PlannedEdit, SamplingTask, make_inputs, size_for, stack
from ldm.editing.options import Placement, Sampling
from ldm.editing.references import References, as_reference, fit_reference, learned_token, object_in_reference
from ldm.editing.window import PlacedWindow
from ldm.fast.networks import Networks, choose_precision
from ldm.images import upright_mask, upright_rgb
from ldm.models.diffusion.conditioning import encode_to_latent, inpaint_channels, reference_token, unconditional_token
from ldm.models.diffusion.sampling import Callback, Step, sample
from ldm.util import UserError, group_into_batches

if TYPE_CHECKING:
    from ldm.methods.control import Control
    from ldm.models.detail.path import DetailPath
    from ldm.models.diffusion.ddpm import LatentDiffusion

Item = TypeVar("Item")
OnFailure = Callable[[Item, Exception], None]


@dataclass(frozen=True)
class SampledBatch(Generic[Item]):
    """Items that were sampled together, their pictures (B,3,H,W), about [-1,1], on the CPU, and how long it took."""

    items: list[Item]
    pictures: Tensor
    seconds: float


class Painter:
    """A model and its networks, which paint windows of photos.

    precision: "full" (float32), "bf16", "fp16" (half precision in the networks, float32 in their last layers and in the
    sampler's arithmetic) or "autocast", the half precision that suits the device; None: autocast on CUDA, else full.
    fast, compiled, offload: see Networks. The model is used with the weights that it has at construction.

    decoder (an AsymmetricDecoder), safety_checker (a SafetyChecker), control (a Control) and detail (a DetailPath of
    the model's UNet) take part in every edit if they are set."""

    def __init__(
        self,
        model: LatentDiffusion,
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
        self.control: Control | None = None
        self.detail: DetailPath | None = None

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
        references = [*map(as_reference, reference if isinstance(reference, tuple) else (reference,))]
        placement = Placement(height=height, width=width, reference_fit=reference_fit)
        return self._inputs(upright_rgb(image), upright_mask(mask, image), [references], placement)

    def plan(
        self,
        photo: Image.Image,
        mask: Image.Image,
        references: Sequence[Image.Image],
        placement: Placement = Placement(),
        control: Image.Image | None = None,
        details: bool = True,
    ) -> PlannedEdit:
        """One edit, ready to be sampled. photo: RGB, upright; mask: L, 255 = paint, of the photo's size, as
        Region.mask_in makes it; references: pictures of one object; control: RGB, of the photo's proportions; details:
        whether the detail path, if there is one, is to add something: then objects are found in the references."""
        if placement.mask_from_difference and self.control is not None:
            raise UserError("mask_from_difference and control exclude each other: leave one of them out")
        place = self._place(photo, mask, placement)
        if placement.mask_from_difference:
            whole = replace(placement, windows=False)
            rough = self._inputs(place.picture, place.region, [references], whole, details=False)
            place = place.within(mask_to_image(self._outline(rough)))
        inputs = self._inputs(place.picture, place.region, [references], placement, details)
        return self._with_control(PlannedEdit(place, inputs), control)

    def _with_control(self, plan: PlannedEdit, control: Image.Image | None) -> PlannedEdit:
        """The edit with its part of the control picture. Raises UserError: there is one, but no network, or none."""
        if (self.control is None) != (control is None):
            raise UserError("control and control_image, a network and its picture, belong together: give both, or none")
        if control is None:
            return plan
        height, width = plan.inputs.image.shape[-2:]
        part = pixels_to_tensor(plan.place.part_of(control, (width, height)))
        return replace(plan, inputs=replace(plan.inputs, control=part[None]))

    def plan_together(
        self,
        photo: Image.Image,
        masks: Sequence[Image.Image],
        references: Sequence[Sequence[Image.Image]],
        placement: Placement = Placement(),
        control: Image.Image | None = None,
    ) -> PlannedEdit:
        """One edit of several regions, each with its own references, in one window around all of them.

        Raises UserError: networks that take one token for the whole picture."""
        if self.control is not None and not self.control.is_adapter:
            raise UserError("together does not go with a ControlNet: leave one of them out, or use a T2I-Adapter")
        if not self.networks.fast or self.model.cond_stage_model.tokens > 1:
            raise UserError("together needs the fast networks and a model of one token: leave it out, or plain")
        from ldm.methods.token_field import shares_of_regions

        place = self._place(photo, functools.reduce(ImageChops.lighter, masks), placement)
        inputs = self._inputs(place.picture, place.region, references, placement, details=False)
        height, width = inputs.image.shape[-2:]
        inside = [each.crop(place.window).resize((width, height), Image.Resampling.BILINEAR) for each in masks]
        factor = self.model.first_stage_model.factor
        paint = torch.stack([mask_to_tensor(each)[0] < 0.5 for each in inside])
        shares = shares_of_regions(paint, (height // factor, width // factor))
        conditions = inputs.conditions
        if isinstance(placement.together, tuple):
            layers = (own if isinstance(own, tuple) else (own, None) for own in placement.together)
            pairs = zip(conditions, layers, strict=True)
            conditions = tuple(replace(each, scale=scale, strength=strength) for each, (scale, strength) in pairs)
        plan = PlannedEdit(place, replace(inputs, conditions=conditions, shares=shares[None]))
        return self._with_control(plan, control)

    def _place(self, photo: Image.Image, mask: Image.Image, placement: Placement) -> PlacedWindow:
        aspect = 1.0
        if placement.height and placement.width:
            self.size_for(photo, placement.height, placement.width)  # raises before the window takes their shape
            aspect = placement.width / placement.height
        return PlacedWindow.around(photo, mask, self.native_size, placement.context, aspect)

    @report_out_of_memory
    @torch.no_grad()
    def _outline(self, inputs: Inputs) -> Tensor:
        """Inputs of a rough region (B = 1) -> the mask (1,H,W), 1 = keep, of what its reference changes there."""
        from ldm.methods.outline import difference, narrowed
        from ldm.methods.source import mean_latents, own_reference

        image, mask = inputs.image.to(self.device), inputs.mask.to(self.device)
        source, inpaint = mean_latents(self.networks, image, mask)
        own = own_reference(image, mask, self.model.cond_stage_model.image_size)
        tokens = reference_token(self.networks, torch.cat([inputs.reference.to(self.device), own]))
        c_ref, c_src = inputs.conditions[0].combine(tokens[:-1])[None], tokens[-1:]
        with self.networks.unet_on_device():
            found = difference(self.networks.denoiser, inpaint, c_ref, c_src, source, self.model.schedule)
        return narrowed(mask, found)[0]

    def _inputs(
        self,
        picture: Image.Image,
        mask: Image.Image,
        references: Sequence[Sequence[Image.Image]],
        placement: Placement,
        details: bool = True,
    ) -> Inputs:
        """references: of each region the pictures of its object; details: see plan."""
        size = whole = self.size_for(picture, placement.height, placement.width)
        if placement.windows:
            whole, own = self.size_for(picture), max(self.native_size**2, picture.width * picture.height)
            given = (placement.height, placement.width)
            size = size_for(picture, self.native_size, self.model.size_multiple, *given, own)
        pictures = [each for group in references for each in group]
        crops = [fit_reference(each, placement.reference_fit) for each in pictures]
        how = (placement.reference_fit, placement.segment)
        objects = [object_in_reference(each, *how) for each in pictures] if details and self.detail else None
        factor = self.model.first_stage_model.factor
        inputs = make_inputs(picture, mask, crops, size, factor, self.model.cond_stage_model.image_size, objects)
        learned = [tuple(learned_token(each, self.model) for each in group) for group in references]
        conditions = tuple(Condition(each, placement.mix) for each in learned)
        return replace(inputs, conditions=conditions, windows=math.prod(size) > math.prod(whole))

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
        conditions = inputs.conditions or (Condition(),) * batch
        tokens = reference_token(self.networks, reference).split([len(each.learned) for each in conditions])
        context = torch.stack([each.combine(own) for each, own in zip(conditions, tokens, strict=True)])
        uncond = unconditional_token(self.networks, batch)
        details = edit_details(self, inputs, inpaint[:, -1:], reference, torch.cat(tokens), sampling)
        scale: float | Tensor = sampling.scale
        strength: float | Tensor = 1.0
        if inputs.shares is not None:  # as many tokens of each edit as it has regions
            shares = inputs.shares.to(self.device)
            context, uncond = context.view(batch, -1, context.shape[-1]), uncond.expand(-1, shares.shape[1], -1)
            scale = field_of(shares, [each.scale for each in conditions], sampling.scale)
            strength = field_of(shares, [each.strength for each in conditions], 1.0)
        source = None
        from_photo = sampling.strength < 1 or sampling.blend_latents or sampling.keep_layout
        if from_photo or inputs.windows or isinstance(strength, Tensor):
            source = encode_to_latent(self.networks, image, torch.zeros_like(x))  # the posterior's mean
        beside = () if self.control is None else (self.control.network,)
        with (
            tqdm(desc=sampling.sampler, total=sampling.steps, unit="step", disable=not progress) as bar,
            self.networks.unet_on_device(*beside),
        ):
            eps_of = EpsOf(self.networks, self.control, sampling, inputs, inpaint, source, strength, details)

            def on_step(step: Step) -> None:
                bar.total = step.total
                bar.update()
                if callback:
                    callback(step)

            if sampling.keep_layout:
                from ldm.methods.keep_layout import sample_keeping_layout
                from ldm.methods.source import own_reference

                own = own_reference(image, mask, self.model.cond_stage_model.image_size)
                tokens = (context, reference_token(self.networks, own), uncond)
                z = sample_keeping_layout(
                    *(sampling.keep_layout, eps_of, tokens, source, self.model.schedule, sampling.steps),
                    *(sampling.keep, sampling.scale, step_noise, self.model.model.diffusion_model, on_step),
                )
            else:
                z = sample(
                    *(sampling.sampler, eps_of(context, uncond, scale), x, self.model.schedule),
                    *(sampling.steps, sampling.eta, step_noise, on_step),
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
        regions = 1 if inputs.shares is None else inputs.shares.shape[1]
        computed = keep.numpy().tobytes() if inputs.windows else self.networks.rectangle(keep, sampling.refresh)
        return height, width, sampling, regions, computed

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

        on_failure: if given, a batch that fails is sampled again one item at a time, and on_failure is called with each
        item that fails and its error; otherwise the error is raised."""

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
