"""What neighbouring methods do in the small world, where outlines and identities are known: cases like the benchmark's,
drawn with the outline of the object that is replaced, and a measurement for each method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.conventions import tensor_to_image
from ldm.data.bench.make import box_mask, square_around
from ldm.data.bench.squares import cut, cut_square
from ldm.data.masks import Box, reference_region
from ldm.editing.inputs import Inputs, stack
from ldm.editing.options import Placement, Sampling
from ldm.evaluation.features import Extractor
from ldm.miniworld.crops import Labels, labels_of
from ldm.miniworld.identity import Identity, draw_held_out, draw_identity
from ldm.miniworld.oracle import colour_error
from ldm.miniworld.outlines import iou, loose
from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.scene import outlined_scene, scene
from ldm.miniworld.scores import identity_scores
from ldm.miniworld.shapes import SHAPES
from ldm.miniworld.write import SCENE_SIZE, SIDE
from ldm.pipeline import PaintByExample
from ldm.segmentation.objects import Prompt, find_object
from ldm.util import UserError

STREAM = 20  # of these cases' scenes, beside those of ldm.miniworld.write
Scores = dict[str, np.ndarray]  # measure -> its value for each case


@dataclass(frozen=True)
class Case:
    """photo, reference: RGB; mask: L, 255 = the box of the object that is replaced; rough: L, a looser box; outline
    (SIDE,SIDE): its pixels; old, new: identities of that object and of the reference's; angles: of both, see Object."""

    photo: Image.Image
    mask: Image.Image
    rough: Image.Image
    reference: Image.Image
    outline: np.ndarray
    old: Identity
    new: Identity
    angles: tuple[float, float]

    @property
    def box(self) -> Box:
        return self.mask.getbbox()  # type: ignore[return-value]  # it has white in it


def draw_case(number: int, times: int = 1) -> Case:
    """Equal numbers draw equal cases; the reference's pair of shape and pattern is one that training never showed.

    times: as many pixels in a row; above 1, more than the model takes."""
    width, height = SCENE_SIZE
    size, side = (times * width, times * height), times * SIDE
    for attempt in range(1000):
        pixels, objects = outlined_scene((0, STREAM, number, attempt), size)
        others, references = scene((0, STREAM + 1, number, attempt), size, draw=draw_held_out)
        fitting = [(thing, shown) for thing, shown in objects if square_around(thing.box, size)]
        if fitting and references:
            break
    (thing, shown), reference = fitting[0], references[0]
    square = square_around(thing.box, size)
    assert square is not None
    outline = np.asarray(cut_square(255 * shown.astype(np.uint8), square, side)) > 127
    mask, rough = (Image.fromarray(box_mask(box, square, side)) for box in (thing.box, loose(thing.box, size)))
    picture = cut(others, reference_region(reference.box, size))
    photo = cut_square(pixels, square, side)
    angles = thing.angle, reference.angle
    return Case(photo, mask, rough, picture, outline, thing.identity, reference.identity, angles)


def found_outline(picture: Image.Image, box: Box | None) -> Image.Image:
    """The object that GrabCut finds in a picture's box: L, 255 = the object; nothing if it finds none."""
    try:
        return find_object(picture, Prompt(box))
    except UserError:
        return Image.new("L", picture.size)


# ------------------------------------------------------------------------------------------- keep the layout

STRENGTHS = (0.8, 0.6, 0.4, 0.2)
KEEPS = {"ddpm": (0.0, 0.2, 0.4, 0.6), "pnp": (0.4, 0.6, 0.8), "ddim": (0.6,)}
SLOW_CASES = 24  # at most, of ddim, whose vectors take long


def layouts(steps: int) -> dict[str, Sampling]:
    """The ways to keep a layout that are compared."""
    plain = Sampling(sampler="ddim", steps=steps)
    ways = {"plain": plain}
    ways |= {f"`--strength {strength:g}`": replace(plain, strength=strength) for strength in STRENGTHS}
    for method, keeps in KEEPS.items():
        for keep in keeps:
            ways[f"`--keep_layout {method} --keep {keep:g}`"] = replace(plain, keep_layout=method, keep=keep)
    return ways


def measure_layout(
    edit: PaintByExample, oracle: Extractor, cases: Sequence[Case], ways: dict[str, Sampling]
) -> Iterator[tuple[str, Scores, list[Image.Image]]]:
    """Of every way: IoU of the new object's outline, as GrabCut sees it, with the old one's, as it is; the reference's
    shape, pattern and colours in the region, as the oracle sees them; the pictures."""
    inputs = [edit.prepare(case.photo, case.mask, case.reference) for case in cases]
    labels = [labels_of(asdict(case.new)) for case in cases]
    yield "photo", layout_scores(oracle, cases, labels, [case.photo for case in cases]), [c.photo for c in cases]
    for name, sampling in ways.items():
        count = min(len(cases), SLOW_CASES) if sampling.keep_layout == "ddim" else len(cases)
        painted = paint_windows(edit, inputs[:count], sampling)
        yield name, layout_scores(oracle, cases[:count], labels[:count], painted), painted


def paint_windows(
    edit: PaintByExample, inputs: Sequence[Inputs], sampling: Sampling, batch_size: int = 20
) -> list[Image.Image]:
    """The windows of edits, each with its position as its seed."""
    painted: list[Image.Image] = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        seeds = range(start, start + len(batch))
        painted += map(tensor_to_image, edit.sample(stack(batch), seeds, sampling, progress=False))
    return painted


def layout_scores(
    oracle: Extractor, cases: Sequence[Case], labels: Sequence[Labels], pictures: Sequence[Image.Image]
) -> Scores:
    """By case: IoU of the outline that GrabCut finds in the region with the case's; identity, as the oracle sees it."""
    pairs = list(zip(cases, pictures, strict=True))
    answers = oracle([oracle.prepare(picture.crop(case.box)) for case, picture in pairs])
    overlap = [iou(found_outline(picture, case.box), case.outline) for case, picture in pairs]
    return {"IoU": np.array(overlap)} | {k: v.numpy() for k, v in identity_scores(answers, labels).items()}


# ------------------------------------------------------------------------------------------- find the outline


def measure_outline(edit: PaintByExample, cases: Sequence[Case]) -> Iterator[tuple[str, Scores, list[Image.Image]]]:
    """IoU with the replaced object's true outline, of what is found in a loose box; the masks."""
    whole = Placement(context="photo", mask_from_difference=True)
    plans = [edit.plan(case.photo, case.rough, [case.reference], whole) for case in cases]
    found = {
        "the loose box itself": [case.rough for case in cases],
        "`--mask_from_difference`": [plan.place.mask for plan in plans],
        "GrabCut": [found_outline(case.photo, case.rough.getbbox()) for case in cases],
    }
    for name, masks in found.items():
        yield name, {"IoU": np.array([iou(mask, case.outline) for mask, case in zip(masks, cases, strict=True)])}, masks


# ------------------------------------------------------------------------------------------- ask the model


def draw_rack() -> tuple[list[Image.Image], list[Identity]]:
    """A reference of each shape in each pattern, in colours of its own."""
    rack: dict[tuple[str, str], tuple[Image.Image, Identity]] = {}
    number = 0
    while len(rack) < len(SHAPES) * len(PATTERNS):
        draw = draw_identity if number % 4 else draw_held_out
        pixels, objects = scene((0, STREAM + 2, number), SCENE_SIZE, draw=draw)
        for thing in objects:
            kind = (thing.identity.shape, thing.identity.pattern)
            rack.setdefault(kind, (cut(pixels, reference_region(thing.box, SCENE_SIZE)), thing.identity))
        number += 1
    pictures, identities = zip(*rack.values(), strict=True)
    return list(pictures), list(identities)


@torch.no_grad()
def measure_which(
    edit: PaintByExample, clip: Extractor, cases: Sequence[Case], draws: int
) -> Iterator[tuple[str, Scores, list[Image.Image]]]:
    """Whether the reference that is chosen among those of draw_rack has the shape, and the pattern, of the object in
    the region, and how far its colours are from the object's: chosen by the model, and by CLIP's cosine of region and
    reference; the references."""
    from ldm.methods.classifier import which_reference

    pictures, identities = draw_rack()
    references = edit.prepare(cases[0].photo, cases[0].mask, tuple(pictures)).reference
    features = clip([clip.prepare(picture) for picture in pictures])
    chosen: dict[str, list[int]] = {"`which_reference.py`": [], "CLIP's cosine": []}
    for case in cases:
        inputs = edit.prepare(case.photo, case.mask, case.reference)
        ranking = which_reference(edit.networks, edit.model.schedule, inputs.image, inputs.mask, references, draws)
        chosen["`which_reference.py`"].append(ranking[0].candidate)
        region = clip([clip.prepare(case.photo.crop(case.box))])
        chosen["CLIP's cosine"].append(int(torch.cosine_similarity(features, region).argmax()))
    for name, picks in chosen.items():
        pairs = [(identities[k], case.old) for k, case in zip(picks, cases, strict=True)]
        colours = [_colours(each) for each in zip(*pairs, strict=True)]
        scores = {
            "shape": np.array([found.shape == true.shape for found, true in pairs], dtype=float),
            "pattern": np.array([found.pattern == true.pattern for found, true in pairs], dtype=float),
            "colour_error": colour_error(*colours).numpy(),
        }
        yield name, scores, [pictures[k] for k in picks]


def _colours(identities: Sequence[Identity]) -> Tensor:
    """(B,2,3) Lab over 100."""
    return torch.from_numpy(np.stack([labels_of(asdict(each)).colours for each in identities]))
