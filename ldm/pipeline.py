"""PaintByExample: load once, call with pictures, get pictures.

edit = PaintByExample.load("configs/v1.yaml", "checkpoints/model.ckpt")
result = edit(image, mask, reference, scale=5, steps=50, seed=321)

    image, mask, reference -> PlacedWindow around the mask -> Inputs (tensors) -> painted window -> pasted back
                              editing/window.py               Painter.plan        Painter.sample    PlacedWindow.paste
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image
from torch import Tensor

from ldm.checkpoint import load_model
from ldm.checkpoint.adapters import merge_into, read_stack
from ldm.checkpoint.detail import load_detail, read_detail
from ldm.checkpoint.locate import choose_model
from ldm.conventions import tensor_to_image
from ldm.editing.arguments import is_one_for_all, one_region, photos_and_seeds, takes_flag_names
from ldm.editing.asymmetric_decoder import AsymmetricDecoder
from ldm.editing.best import Choice, attempt, load_judge, rate
from ldm.editing.checks import pick_device, report_out_of_memory
from ldm.editing.details import plans_detail
from ldm.editing.inputs import PlannedEdit, SamplingTask
from ldm.editing.marked import MarkedPhoto
from ldm.editing.metadata import attach_settings
from ldm.editing.options import (
    Blending,
    Context,
    Layer,
    Loading,
    Placement,
    Sampling,
    Selection,
    check_choices,
    settings_of,
)
from ldm.editing.painter import Painter
from ldm.editing.pictures import Picture
from ldm.editing.references import References
from ldm.editing.regions import Point, Region
from ldm.editing.safety import SafetyChecker
from ldm.fast.networks import check_network_options, choose_precision
from ldm.models.diffusion.presets import resolve_preset
from ldm.models.diffusion.sampling import Callback
from ldm.util import UserError

OnPlan = Callable[[int, int, PlannedEdit], None]  # numbers of the photo and of the region, and the plan
OnPainted = Callable[[int, PlannedEdit, Tensor], None]  # number of the photo, the plan, the window (3,H,W)


class PaintByExample(Painter):
    """Edits of photos with one model: pictures in, pictures out. For the arguments see Painter.

    settings: which model this is, for the settings of pictures; empty for a model that no file was named for."""

    settings: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def load(
        cls,
        config: Any = None,
        ckpt: str | os.PathLike | None = None,
        device: str | None = None,
        precision: str | None = None,
        lora: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        lora_scale: float | Sequence[float] = 1.0,
        fast: bool = True,
        compiled: bool = False,
        offload: bool = False,
        decoder: str | os.PathLike | None = None,
        safety_checker: str | os.PathLike | None = None,
        *,
        control: str | os.PathLike | None = None,
        detail: str | os.PathLike | None = None,
    ) -> PaintByExample:
        """The arguments are the fields of ldm.editing.options.Loading."""
        return cls.from_loading(
            Loading(
                *(config, ckpt, device, precision, lora, lora_scale, fast, compiled, offload, decoder, safety_checker),
                control=control,
                detail=detail,
            )
        )

    @classmethod
    @report_out_of_memory
    def from_loading(cls, loading: Loading) -> PaintByExample:
        """Raises UserError: a file that is missing or damaged, choices that do not go together, memory that is full."""
        device = pick_device(loading.device)
        # Cheap checks come before gigabytes are read.
        check_network_options(device, choose_precision(device, loading.precision), loading.fast, loading.compiled)
        adapters = read_stack(loading.lora, loading.lora_scale)
        if loading.detail is not None:
            read_detail(loading.detail)
        home, checker = "cpu" if loading.offload else device, None
        if loading.safety_checker is not None:
            checker = SafetyChecker.load(loading.safety_checker, home)
        config, ckpt = choose_model(loading.config, loading.ckpt, loading.lora)
        model = load_model(config, ckpt, home)
        if adapters:
            merge_into(model, adapters)
        edit = cls(model, loading.precision, loading.fast, loading.compiled, device if loading.offload else None)
        edit.settings = loading.settings | {"checkpoint": Path(ckpt).name}
        edit.safety_checker = checker
        if loading.detail is not None:
            edit.detail = load_detail(model, loading.detail)
        if loading.decoder is not None:
            edit.decoder = AsymmetricDecoder.load(loading.decoder, home, model.first_stage_model.factor, model.channels)
        if loading.control is not None:
            from ldm.methods.control import Control

            edit.control = Control.load(loading.control, edit.networks)
        return edit

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
        on_painted: OnPainted | None = None,
    ) -> list[Image.Image]:
        """Paint the regions of each photo, one after the other or together, each with its references -> whole pictures.

        seeds, starts: one for each photo, see `sample`; on_plan: called with every plan before it is sampled;
        on_painted: with every window that was painted."""
        check_choices(placement, sampling)
        details = plans_detail(self.detail, sampling, placement)
        pictures = [marked.photo for marked in photos]
        for marked in {
            id(marked): marked for marked in photos
        }.values():  # what cannot be painted is said before sampling
            for mask, references in zip(marked.masks[1:], marked.references[1:], strict=True):
                self.plan(marked.photo, mask, references, placement, marked.control, details=False)
        passes = 1 if placement.together else max((len(marked.masks) for marked in photos), default=0)
        for number in range(passes):
            plans: dict[int, PlannedEdit] = {}
            for i, marked in enumerate(photos):
                if number >= len(marked.masks):
                    continue
                same = next((j for j in plans if photos[j] is marked and pictures[j] is pictures[i]), None)
                if same is not None:
                    plans[i] = plans[same]
                elif placement.together:
                    own = marked.masks, marked.references
                    plans[i] = self.plan_together(pictures[i], *own, placement, marked.control)
                else:
                    one = marked.masks[number], marked.references[number]
                    plans[i] = self.plan(pictures[i], *one, placement, marked.control, details)
                if on_plan:
                    on_plan(i, number, plans[i])

            def task_of(i: int, plans: dict[int, PlannedEdit] = plans) -> SamplingTask:
                return SamplingTask(plans[i].inputs, seeds[i], sampling, starts[i] if starts else None)

            for batch in self.sample_in_batches(plans, task_of, batch_size, progress=progress, callback=callback):
                for i, painted in zip(batch.items, batch.pictures, strict=True):
                    if on_painted:
                        on_painted(i, plans[i], painted)
                    pictures[i] = plans[i].place.paste(tensor_to_image(painted), photos[i].blending(blending))
        return pictures

    def choose_seed(
        self,
        marked: MarkedPhoto,
        seed: int,
        selection: Selection,
        sampling: Sampling = Sampling(),
        placement: Placement = Placement(),
        blending: Blending = Blending(),
        *,
        batch_size: int = 4,
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Choice:
        """Best of N (ldm.editing.best): which of the seeds from `seed` on is the best for a photo, for all of its
        regions together. A seed's noise is the same under every sampler, so `repaint` keeps the layout that was chosen.

        Raises UserError as `repaint` does, and for a judge that cannot be loaded."""
        seeds = selection.seeds(seed)
        if len(seeds) == 1:
            return Choice(seed, selection)
        if sampling.keep_layout:
            raise UserError(
                f"best {len(seeds)} tries seeds by a preset, which keep_layout does not take: leave out one"
            )
        judge = load_judge(selection.judge, self)
        quick = replace(sampling, eta=0.0, **resolve_preset(selection.best_preset)._asdict())
        ratings: list[list[tuple[float, float]]] = [[] for _ in seeds]
        self.repaint(
            *([marked] * len(seeds), seeds, quick, placement, blending),
            batch_size=batch_size,
            progress=progress,
            callback=callback,
            on_painted=lambda i, plan, painted: ratings[i].append(rate(painted, plan.inputs, judge)),
        )
        return Choice.of([attempt(*each) for each in zip(seeds, ratings, strict=True)], selection)

    @takes_flag_names
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        mask: Picture | Sequence[Picture] | None = None,
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
        keep_layout: str | None = None,
        keep: float | None = None,
        reference_fit: str = "squash",
        blend_latents: bool = False,
        grow: float = 0.0,
        invert: bool = False,
        regions: Sequence[Region] | None = None,
        references: Sequence[References] | None = None,
        box: Sequence[int] | Sequence[Sequence[int]] | None = None,
        polygon: Sequence[Point] | Sequence[Sequence[Point]] | None = None,
        alpha: bool = False,
        snap: Sequence[int] | None = None,
        click: Sequence[Point] | Point | None = None,
        click_not: Sequence[Point] | Point | None = None,
        reference_cutout: bool = False,
        segment: str | None = None,
        mask_from_difference: bool = False,
        mix: float | None = None,
        together: bool | Sequence[Layer] = False,
        windows: bool = False,
        best: int = 1,
        best_preset: str = "draft",
        judge: str = "clip",
        control_image: Picture | Sequence[Picture] | None = None,
        control_scale: float | None = None,
        detail_scale: float | None = None,
    ) -> Image.Image | list[Image.Image] | list[list[Image.Image]]:
        """Repaint a region of an image, or several, each with the object of its reference.

        image, mask, reference: pictures of any size and mode (ldm.editing.pictures: paths, PIL pictures, arrays,
            tensors), or lists or batches of them, one edit per entry; a single picture goes with every entry of the
            others. A mask is white (255) where to paint. A tuple of references is several pictures of one object; a
            reference's path may be that of a learned token (.safetensors)
        box, polygon, alpha: instead of mask: (x0, y0, x1, y1) or corners (x, y), in pixels of every image, or a list
            with one for each edit; True for what is transparent in it
        click, click_not, snap: instead of mask: an object, by points (x, y) on it and beside it, or a loose box
        regions, references: instead of these and reference, a list of regions of the image, painted one after the
            other, and a list of references, one for each region or one for all
        scale, sampler, steps, eta, strength, blend_latents, keep_layout, keep, control_scale, detail_scale: see
            ldm.editing.options.Sampling; steps 50 and sampler "plms" if not given; preset: "fast" or "draft", instead
            of sampler and steps
        control_image: edges, depth or what else the loaded ControlNet or T2I-Adapter takes, of the image's proportions
        seed: of the first sample of every edit, or a list, one per edit; further samples count up from it. A picture
            depends on its seed, not on the others that are made with it
        n_samples: pictures per edit
        height, width, context, grow, invert, reference_fit, reference_cutout, segment, mask_from_difference, mix,
            together, windows: see ldm.editing.options.Placement
        background, feather: see ldm.editing.options.Blending
        best, best_preset, judge: of how many seeds the best is painted, and how it is chosen: see
            ldm.editing.options.Selection; further samples begin with the seeds after those
        batch_size: largest number of pictures to make at once, which decides how much memory it takes
        progress: show a bar; callback: called with a sampling.Step after every step

        Keywords may also have the published flags' names, see ldm.editing.names.FLAG_NAMES.

        -> a picture of the image's size, RGB, with its settings in its `info` (ldm.editing.metadata); with n_samples
        > 1 a list of them; for lists of inputs, a list of those. Raises UserError for what is wrong with the pictures
        or numbers, TypeError for what are no pictures or numbers."""
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} {value} is out of range: use 1 or more")
        blending, selection = Blending(background, feather), Selection(best, best_preset, judge)
        layout = (strength, blend_latents, keep_layout, keep, control_scale, detail_scale)
        sampling = Sampling.choose(preset, sampler, steps, scale, eta, *layout)
        fit = (reference_fit, reference_cutout, segment, mask_from_difference, mix, together, windows)
        placement = Placement(context, height, width, grow, invert, *fit)
        mask = one_region(mask, box, polygon, alpha, snap, click, click_not)
        what = (mask, reference, regions, references, control_image)
        photos, seeds, settings = photos_and_seeds(
            image, seed, *what, n_samples=n_samples, placement=placement, best=best
        )
        how = (sampling, placement, blending)
        watch: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "callback": callback}
        choices = [
            self.choose_seed(marked, first, selection, *how, **watch)
            for marked, first in zip(photos, seeds, strict=True)
        ]
        pictures = self.repaint(photos, [choice.seed for choice in choices], *how, **watch)
        for picture, own, choice in zip(pictures, settings, choices, strict=True):
            own |= settings_of(*how) | choice.settings | {"precision": self.precision, **self.settings}
            attach_settings(picture, own)
        if n_samples > 1:
            pictures = [pictures[i : i + n_samples] for i in range(0, len(pictures), n_samples)]
        given = [each for each in (image, mask, reference, seed, control_image) if each is not None]
        return pictures[0] if all(map(is_one_for_all, given)) else pictures
