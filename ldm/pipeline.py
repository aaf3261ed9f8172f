"""PaintByExample: load once, call with pictures, get pictures.

edit = PaintByExample.load("configs/v1.yaml", "checkpoints/model.ckpt")
result = edit(image, mask, reference, scale=5, steps=50, seed=321)

    image, mask, reference -> PlacedWindow around the mask -> Inputs (tensors) -> painted window -> pasted back
                              editing/window.py               Painter.plan        Painter.sample    PlacedWindow.paste
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from ldm.checkpoint import load_model
from ldm.checkpoint.locate import choose_model
from ldm.checkpoint.lora import merge_into, read_adapter
from ldm.conventions import tensor_to_image
from ldm.editing.asymmetric_decoder import AsymmetricDecoder
from ldm.editing.checks import pick_device, report_out_of_memory
from ldm.editing.inputs import PlannedEdit, SamplingTask
from ldm.editing.marked import MarkedPhoto
from ldm.editing.metadata import attach_settings
from ldm.editing.names import FLAG_NAMES
from ldm.editing.options import Blending, Context, Loading, Placement, Sampling, check_seed, settings_of
from ldm.editing.painter import Painter
from ldm.editing.pictures import KINDS, Picture, is_one_picture
from ldm.editing.references import References
from ldm.editing.regions import Point, Region
from ldm.editing.safety import SafetyChecker
from ldm.fast.networks import check_network_options, choose_precision
from ldm.models.diffusion.sampling import Callback
from ldm.util import UserError

OnPlan = Callable[[int, int, PlannedEdit], None]  # numbers of the photo and of the region, and the plan


def _takes_flag_names(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: keywords may also have the published flags' names; an unknown one raises a TypeError that suggests."""
    known = set(inspect.signature(call).parameters) - {"self"}

    @functools.wraps(call)
    def run(self: Any, *args: Any, **keywords: Any) -> Any:
        for flag in keywords.keys() - known:
            if (name := FLAG_NAMES.get(flag)) is None:
                near = difflib.get_close_matches(flag, [*known, *FLAG_NAMES], 1)
                hint = (
                    f"did you mean {FLAG_NAMES.get(near[0], near[0])}?" if near else f"use {', '.join(sorted(known))}"
                )
                raise TypeError(f"{flag!r} is not an argument of an edit: {hint}")
            if name in keywords:
                raise TypeError(f"{flag} and {name} are the same argument: give one of them")
            keywords[name] = keywords.pop(flag)
        return call(self, *args, **keywords)

    return run


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
        config, ckpt = choose_model(loading.config, loading.ckpt, loading.lora)
        model = load_model(config, ckpt, home)
        if adapter:
            merge_into(model, adapter, loading.lora_scale)
        edit = cls(model, loading.precision, loading.fast, loading.compiled, device if loading.offload else None)
        edit.settings = loading.settings | {"checkpoint": Path(ckpt).name}
        edit.safety_checker = checker
        if loading.decoder is not None:
            edit.decoder = AsymmetricDecoder.load(loading.decoder, home, model.first_stage_model.factor, model.channels)
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
    ) -> list[Image.Image]:
        """Paint the regions of each photo, one after the other, each with its references -> whole pictures.

        seeds, starts: one for each photo, see `sample`; on_plan: called with every plan before it is sampled."""
        pictures = [marked.photo for marked in photos]
        for marked in {
            id(marked): marked for marked in photos
        }.values():  # what cannot be painted is said before sampling
            for mask, references in zip(marked.masks[1:], marked.references[1:], strict=True):
                self.plan(marked.photo, mask, references, placement)
        for number in range(max((len(marked.masks) for marked in photos), default=0)):
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

    @_takes_flag_names
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
        reference_fit: str = "squash",
        blend_latents: bool = False,
        grow: float = 0.0,
        invert: bool = False,
        regions: Sequence[Region] | None = None,
        references: Sequence[References] | None = None,
        box: Sequence[int] | None = None,
        polygon: Sequence[Point] | None = None,
        alpha: bool = False,
    ) -> Image.Image | list[Image.Image] | list[list[Image.Image]]:
        """Repaint a region of an image, or several, each with the object of its reference.

        image, mask, reference: pictures of any size and mode (ldm.editing.pictures: paths, PIL pictures, arrays,
            tensors), or lists or batches of them, one edit per entry; a single picture goes with every entry of the
            others. A mask is white (255) where to paint. A tuple of references is several pictures of one object
        box, polygon, alpha: instead of mask: (x0, y0, x1, y1) or corners (x, y), in pixels of every image; True for
            what is transparent in it
        regions, references: instead of these and reference, a list of regions of the image, painted one after the
            other, and a list of references, one for each region or one for all
        scale, sampler, steps, eta, strength, blend_latents: see ldm.editing.options.Sampling; steps 50 and sampler
            "plms" if not given; preset: "fast" or "draft", instead of sampler and steps
        seed: of the first sample of every edit, or a list, one per edit; further samples count up from it. A picture
            depends on its seed, not on the others that are made with it
        n_samples: pictures per edit
        height, width, context, grow, invert, reference_fit: see ldm.editing.options.Placement
        background, feather: see ldm.editing.options.Blending
        batch_size: largest number of pictures to make at once, which decides how much memory it takes
        progress: show a bar; callback: called with a sampling.Step after every step

        Keywords may also have the published flags' names, see ldm.editing.options.FLAG_NAMES.

        -> a picture of the image's size, RGB, with its settings in its `info` (ldm.editing.metadata); with n_samples
        > 1 a list of them; for lists of inputs, a list of those. Raises UserError for what is wrong with the pictures
        or numbers, TypeError for what are no pictures or numbers."""
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} {value} is out of range: use 1 or more")
        blending = Blending(background, feather)
        sampling = Sampling.choose(preset, sampler, steps, scale, eta, strength, blend_latents)
        placement = Placement(context, height, width, grow, invert, reference_fit)
        mask = _one_region(mask, box, polygon, alpha)
        photos, seeds, settings = _photos_and_seeds(
            image, seed, mask, reference, regions, references, n_samples=n_samples, placement=placement
        )
        how = (sampling, placement, blending)
        pictures = self.repaint(photos, seeds, *how, batch_size=batch_size, progress=progress, callback=callback)
        for picture, own in zip(pictures, settings, strict=True):
            attach_settings(picture, own | settings_of(*how) | {"precision": self.precision, **self.settings})
        if n_samples > 1:
            pictures = [pictures[i : i + n_samples] for i in range(0, len(pictures), n_samples)]
        given = [each for each in (image, mask, reference, seed) if each is not None]
        return pictures[0] if all(map(_is_one_for_all, given)) else pictures


def _one_region(mask: Any, box: Any, polygon: Any, alpha: bool) -> Any:
    """The mask, or the region given in its place. Raises UserError: two of them."""
    given = {name: value for name, value in (("box", box), ("polygon", polygon)) if value is not None}
    given |= {"alpha": True} if alpha else {}
    if len(given) + (mask is not None) > 1:
        raise UserError(
            "mask, box, polygon and alpha exclude each other: give one, or several as regions=[Region(...), ...]"
        )
    return Region(**given) if given else mask


def _photos_and_seeds(
    image: Any,
    seed: Any,
    mask: Any,
    reference: Any,
    regions: Sequence[Region] | None,
    references: Sequence[References] | None,
    *,
    n_samples: int,
    placement: Placement,
) -> tuple[list[MarkedPhoto], list[int], list[dict[str, Any]]]:
    """The arguments of a call -> its photos, each n_samples times, and for each a seed and what its settings say of
    both. Raises UserError, TypeError."""
    if regions is None and references is None:
        if mask is None:
            raise UserError("no region is marked: give mask, box, polygon, alpha or regions")
        if reference is None:
            raise UserError("no reference is given: give one as reference")
        rows = _rows(image=image, seed=seed, mask=mask, reference=reference)
    else:
        if mask is not None or reference is not None:
            raise UserError("mask and reference exclude regions and references: leave out one pair of them")
        if not regions or not references:
            raise UserError("regions or references are missing: give both, one reference for each region or for all")
        rows = _rows(image=image, seed=seed)
    photos, seeds, settings = [], [], []
    for photo, first, *pair in rows:
        where = regions or [pair[0] if isinstance(pair[0], Region) else Region(mask=pair[0])]
        what = references or [pair[1]]
        marked = MarkedPhoto.mark(photo, where, what, placement)
        groups = [[_path_of(each) for each in (group if isinstance(group, tuple) else (group,))] for group in what]
        places = [region.settings for region in where]
        own: dict[str, Any] = {  # without the names of pictures in memory, which have none
            "image": _path_of(photo) or None,
            "regions": None if {"mask": ""} in places else places,
            "references": groups if all(map(all, groups)) else None,
        }
        for i in range(n_samples):
            check_seed(int(first) + i)
            photos.append(marked)
            seeds.append(int(first) + i)
            settings.append(own | {"seed": int(first) + i})
    return photos, seeds, settings


def _path_of(picture: Any) -> str:
    """Where a picture was read from; empty if it was in memory."""
    return os.fspath(picture if isinstance(picture, str | os.PathLike) else getattr(picture, "filename", "") or "")


def _is_one_for_all(value: Any) -> bool:
    """Whether an argument goes with all entries of the lists."""
    return (is_one_picture(value) and not _is_list_of_numbers(value)) or isinstance(
        value, tuple | numbers.Integral | Region
    )


def _is_list_of_numbers(value: Any) -> bool:
    """Whether this is a list of seeds as an array or a tensor."""
    return getattr(value, "ndim", None) == 1


def _rows(**columns: Any) -> list[tuple[Any, ...]]:
    """Image, seed and, if given, mask and reference, each a list or one value for all rows -> the rows.

    Raises UserError for lists of several lengths, TypeError for anything else than pictures and numbers."""
    lists = {name: column for name, column in columns.items() if not _is_one_for_all(column)}
    for name, column in lists.items():
        if not hasattr(column, "__len__") or isinstance(column, dict | bytes):
            kinds = "give a whole number" if name == "seed" else f"give {KINDS}"
            raise TypeError(f"{name} is of the type {type(column).__name__}: {kinds}, or a list of them")
        if len(column) == 0:
            raise TypeError(f"{name} is an empty list: give one or more")
    lengths = sorted({len(column) for column in lists.values()})
    if len(lengths) > 1:
        raise UserError(
            f"lists of {' and '.join(map(str, lengths))} entries do not go together: give image, mask, reference and "
            "seed each once, or as lists of one length"
        )
    count = lengths[0] if lengths else 1
    rows = list(zip(*(lists.get(name, [column] * count) for name, column in columns.items()), strict=True))
    for row in rows:
        seed = row[1]
        if not isinstance(seed, numbers.Integral) and not (
            hasattr(seed, "__index__") and getattr(seed, "ndim", 1) == 0
        ):
            raise TypeError(f"seed {seed!r:.40} is not a whole number: give one, or a list of them")
    return rows
