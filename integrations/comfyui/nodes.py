"""The nodes. ComfyUI calls the method FUNCTION with the values of INPUT_TYPES by their names.

IMAGE, MASK: see tensors.py; PBE_MODEL: a PaintByExample; PBE_REGIONS: a list of MaskedExample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import (
    BACKGROUNDS,
    MAX_BEST,
    MAX_SCALE,
    WHOLE_PHOTO,
    Blending,
    Context,
    Placement,
    Sampling,
    Selection,
)
from ldm.editing.regions import Region, box_mask
from ldm.models.diffusion.presets import PRESETS
from ldm.models.diffusion.sampling import Callback
from ldm.pipeline import PaintByExample
from ldm.util import UserError

from . import host, models
from .models import AUTO
from .tensors import image_of, masks_of, pictures_of

CATEGORY = "Paint by Example"
NO_PRESET = "none"
MAX_SIDE = 2**15  # pixels
Inputs = dict[str, Any]


def number(kind: str, default: float, low: float, high: float, step: float, tooltip: str) -> tuple[str, Inputs]:
    """An input of the kind INT or FLOAT."""
    return kind, {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


SETTINGS: Inputs = {
    "seed": number("INT", 321, 0, 2**63 - 1, 1, "of the first picture of a batch; the others count up from it"),
    "steps": number("INT", 50, 1, 999, 1, "of sampling; a preset has its own"),
    "guidance": number("FLOAT", 5.0, 0, MAX_SCALE, 0.5, "1: none; larger follows the example more closely"),
    "preset": ([NO_PRESET, *PRESETS], {"tooltip": "the same quality in less time (fast), or a quick look (draft)"}),
    "background": (list(BACKGROUNDS), {"tooltip": "around the mask: exact keeps every pixel, feather all but a band,"
                   " poisson fits the colours inside, none keeps nothing of the window"}),
    "context": ("STRING", {"default": AUTO, "tooltip": "length of the window that the model sees, in lengths of"
                " the mask's box; auto: the mask covers a fifth of it; photo: the whole photo"}),
    "grow": number("FLOAT", 0.0, -MAX_SIDE, MAX_SIDE, 1, "pixels to grow the mask by; below 0: to shrink it by"),
}  # fmt: skip
CHOICE: Inputs = {  # optional: workflows from before have no values for them
    "best": number("INT", 1, 1, MAX_BEST, 1, "seeds that are tried for each picture; the best of them is painted"),
    "best_preset": (list(PRESETS), {"default": "draft", "tooltip": "the preset by which seeds are tried"}),
}


@dataclass(frozen=True)
class MaskedExample:
    """A region of a batch of photos: mask (B,H,W), 1 = paint, and example (B,H,W,C), 0 to 1, with one entry for all
    photos or one for each."""

    mask: Tensor
    example: Tensor


class LoadModel:
    DESCRIPTION = "Loads a model, which stays loaded until another one is."
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("PBE_MODEL",)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        precisions = [AUTO, "full", "bf16", "fp16", "autocast"]
        return {
            "required": {
                "checkpoint": (models.checkpoints(), {"tooltip": "the released model is 5 GB and is fetched if missing;"
                               " the miniature paints small pictures of a world of shapes"}),
                "precision": (precisions, {"tooltip": "auto: half precision on NVIDIA GPUs, else full"}),
                "lora": (models.loras(), {"tooltip": "an adapter that fine-tuning with this project wrote"}),
                "lora_scale": number("FLOAT", 1.0, -10, 10, 0.05, "0: nothing of it; 1: as it was trained"),
            },
            "optional": {
                "offload": ("BOOLEAN", {"default": False, "tooltip": "each network is on the GPU only while it works"}),
                "config": ("STRING", {"default": "", "tooltip": "YAML of a checkpoint from ComfyUI's folder; empty: the"
                           " released model's"}),
            },
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, **values: Any) -> str:
        return str(models.fingerprint(models.options(**values)))

    def load(self, **values: Any) -> tuple[PaintByExample]:
        return (models.load(models.options(**values)),)


class Edit:
    DESCRIPTION = (
        "Paints the object of the example into the mask's region. Images, masks and examples: one for all, or batches"
        " of one length."
    )
    CATEGORY = CATEGORY
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        pictures = {"image": ("IMAGE",), "mask": ("MASK",), "example": ("IMAGE",)}
        return {"required": {"model": ("PBE_MODEL",), **pictures, **SETTINGS}, "optional": CHOICE}

    def edit(self, model: PaintByExample, image: Tensor, mask: Tensor, example: Tensor, **how: Any) -> tuple[Tensor]:
        return (paint(model, image, [MaskedExample(mask, example)], **how),)


class AddRegion:
    DESCRIPTION = "A region and its example, after other regions: for Edit regions, which paints them in this order."
    CATEGORY = CATEGORY
    FUNCTION = "add"
    RETURN_TYPES = ("PBE_REGIONS",)
    RETURN_NAMES = ("regions",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        required = {"mask": ("MASK",), "example": ("IMAGE",)}
        return {"required": required, "optional": {"regions": ("PBE_REGIONS",)}}

    def add(
        self, mask: Tensor, example: Tensor, regions: list[MaskedExample] | None = None
    ) -> tuple[list[MaskedExample]]:
        return ([*(regions or []), MaskedExample(mask, example)],)


class EditRegions:
    DESCRIPTION = "Paints several regions, one after the other, each with its example."
    CATEGORY = CATEGORY
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        pictures = {"image": ("IMAGE",), "regions": ("PBE_REGIONS",)}
        return {"required": {"model": ("PBE_MODEL",), **pictures, **SETTINGS}, "optional": CHOICE}

    def edit(self, model: PaintByExample, image: Tensor, regions: list[MaskedExample], **how: Any) -> tuple[Tensor]:
        return (paint(model, image, regions, **how),)


class BoxMask:
    DESCRIPTION = "A mask that is white in a box of the image."
    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        corner = {name: number("INT", 0, 0, MAX_SIDE, 1, "of the box's corner, pixels") for name in ("x", "y")}
        sides = {name: number("INT", 256, 1, MAX_SIDE, 1, "of the box, pixels") for name in ("width", "height")}
        return {"required": {"image": ("IMAGE",), **corner, **sides}}

    def make(self, image: Tensor, x: int, y: int, width: int, height: int) -> tuple[Tensor]:
        size = image.shape[2], image.shape[1]
        return (image_of([box_mask(size, (x, y, x + width, y + height))]),)


def paint(
    model: PaintByExample,
    image: Tensor,
    regions: Sequence[MaskedExample],
    *,
    seed: int,
    steps: int,
    guidance: float,
    preset: str,
    background: str,
    context: str,
    grow: float,
    best: int = 1,
    best_preset: str = "draft",
) -> Tensor:
    """image (B,H,W,C) -> (N,H,W,3), N the length of the longest batch; the others are the values of SETTINGS and
    CHOICE.

    Raises UserError: batches of several lengths, an empty mask, a value out of range; ComfyUI's exception if the user
    interrupts it."""
    speed = {"steps": steps} if preset == NO_PRESET else {"preset": preset}
    sampling = Sampling.choose(scale=guidance, **speed)
    placement, blending = Placement(parse_context(context), grow=grow), Blending(background)
    photos = mark(image, regions, placement)
    selection = Selection(best, best_preset)
    firsts = [seed + i * best for i in range(len(photos))]
    for first in firsts:
        selection.seeds(first)

    def shown(count: int) -> Callback:
        """count: pictures times regions."""
        progress = host.Progress()
        return lambda step: progress.add(len(step.x), count * step.total)  # x: of those that are sampled together

    how, count = (sampling, placement, blending), len(photos) * len(regions)
    trying = shown(count * best)
    seeds = [
        model.choose_seed(marked, first, selection, *how, callback=trying).seed
        for marked, first in zip(photos, firsts, strict=True)
    ]
    return image_of(model.repaint(photos, seeds, *how, callback=shown(count)))


def mark(image: Tensor, regions: Sequence[MaskedExample], placement: Placement) -> list[MarkedPhoto]:
    """One photo for each entry of the longest batch. Raises UserError as `paint` does."""
    photos = pictures_of(image)
    masks = [masks_of(each.mask) for each in regions]
    examples = [pictures_of(each.example, "example") for each in regions]
    if not all((each.mask.amax((-2, -1)) >= 0.5).all() for each in regions):
        raise UserError("the mask has nothing to paint: draw it in the mask editor, or connect Mask from box")
    lengths = {len(batch) for batch in (photos, *masks, *examples)} - {1}
    if len(lengths) > 1:
        raise UserError(
            f"batches of {' and '.join(map(str, sorted(lengths)))} pictures do not go together: give images, masks and"
            " examples one for all, or as many as there are of the others"
        )
    (count,) = lengths or {1}

    def entry(batch: list[Image.Image], i: int) -> Image.Image:
        return batch[i if len(batch) > 1 else 0]

    return [
        MarkedPhoto.mark(
            entry(photos, i),
            [Region(mask=entry(batch, i)) for batch in masks],
            [entry(batch, i) for batch in examples],
            placement,
        )
        for i in range(count)
    ]


def parse_context(text: str) -> Context:
    """Raises UserError: neither auto nor photo nor a number."""
    if text in (AUTO, WHOLE_PHOTO):
        return None if text == AUTO else WHOLE_PHOTO
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"context {text!r:.40} is not a number: use for example 2.5, or {AUTO}, or photo") from error


NODES = {  # name: class and title; other packs' names must differ
    "PaintByExampleLoadModel": (LoadModel, "Load model (Paint by Example)"),
    "PaintByExampleEdit": (Edit, "Edit (Paint by Example)"),
    "PaintByExampleAddRegion": (AddRegion, "Add region (Paint by Example)"),
    "PaintByExampleEditRegions": (EditRegions, "Edit regions (Paint by Example)"),
    "PaintByExampleBoxMask": (BoxMask, "Mask from box (Paint by Example)"),
}
NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in NODES.items()}
