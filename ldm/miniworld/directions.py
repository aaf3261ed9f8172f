"""Directions between two references: whether an edit takes on what b has and a has not, and keeps the rest of its own
reference, in the small world, where the identities of all of them are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from ldm.conventions import tensor_to_image
from ldm.data.bench.squares import cut
from ldm.data.masks import Box, reference_region
from ldm.editing.inputs import stack
from ldm.editing.options import Placement, Sampling
from ldm.evaluation.features import Extractor
from ldm.miniworld.crops import lab
from ldm.miniworld.identity import MIN_CONTRAST, Identity, contrast, draw_identity
from ldm.miniworld.neighbours import STREAM, Scores, draw_case
from ldm.miniworld.oracle import split_answers
from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.scene import scene
from ldm.miniworld.shapes import SHAPES
from ldm.miniworld.write import SCENE_SIZE
from ldm.pipeline import PaintByExample

ATTRIBUTES = ("pattern", "colour", "shape")
FEATURES = (*ATTRIBUTES, "second")


@dataclass(frozen=True)
class DirectedCase:
    """photo: RGB; mask: L, 255 = paint; attribute: one of ATTRIBUTES, in which a and b differ and c is as a.

    pictures: by name, c, a, b and `wanted`, which is c with b's attribute; identities: theirs. Beside the attribute, a
    and b have nothing in common with c."""

    photo: Image.Image
    mask: Image.Image
    attribute: str
    pictures: dict[str, Image.Image]
    identities: dict[str, Identity]

    @property
    def box(self) -> Box:
        return self.mask.getbbox()  # type: ignore[return-value]  # it has white in it


def draw_directed(number: int) -> DirectedCase:
    """Equal numbers draw equal cases; the attribute is another for each of three numbers in a row."""
    case, attribute = draw_case(number // len(ATTRIBUTES)), ATTRIBUTES[number % len(ATTRIBUTES)]
    rng = np.random.default_rng((0, STREAM + 3, number))
    while True:
        c, other, third = (draw_identity(rng) for _ in range(3))
        before, after = ({attribute: getattr(each, attribute)} for each in (c, third))
        named = {"c": c, "a": replace(other, **before), "b": replace(other, **after), "wanted": replace(c, **after)}
        apart = all(_differ(getattr(x, name), getattr(y, name)) for x, y, name in _pairs(c, other, third, attribute))
        if apart and all(contrast(each.colour, each.second) >= MIN_CONTRAST for each in named.values()):
            break
    pictures = {name: _picture((0, STREAM + 4, number, i), each) for i, (name, each) in enumerate(named.items())}
    return DirectedCase(case.photo, case.mask, attribute, pictures, named)


def _pairs(c: Identity, other: Identity, third: Identity, attribute: str) -> list[tuple[Identity, Identity, str]]:
    return [(c, other, name) for name in FEATURES] + [(c, third, attribute)]


def _differ(x: object, y: object) -> bool:
    return contrast(x, y) >= MIN_CONTRAST / 2 if isinstance(x, tuple) and isinstance(y, tuple) else x != y


def _picture(seed: tuple[int, ...], identity: Identity) -> Image.Image:
    """A reference that shows the identity."""
    for attempt in range(1000):
        pixels, objects = scene((*seed, attempt), SCENE_SIZE, draw=lambda _: identity)
        if objects:
            break
    return cut(pixels, reference_region(objects[0].box, SCENE_SIZE))


WAYS: dict[str, tuple[tuple[str, ...], float | None]] = {  # the references, by their names in a case, and `mix`
    "c alone": (("c",), None),
    "c and b, `--mix 0.5`": (("c", "b"), 0.5),
    "c, a, b, `--mix 1`": (("c", "a", "b"), 1.0),
    "b alone": (("b",), None),
    "what is wanted": (("wanted",), None),
}


def measure_directions(
    edit: PaintByExample, oracle: Extractor, cases: Sequence[DirectedCase], sampling: Sampling
) -> Iterator[tuple[str, Scores, list[Image.Image]]]:
    """For each way, as the oracle sees the region: shares of cases where the attribute is b's, and where shape and
    pattern, as far as they are not the attribute, are c's; distance of the colour that is to stay; the pictures."""
    for name, (names, mix) in WAYS.items():
        painted: list[Image.Image] = []
        for start in range(0, len(cases), 20):
            batch = cases[start : start + 20]
            placement = Placement(context="photo", mix=mix)
            plans = [
                edit.plan(each.photo, each.mask, [each.pictures[key] for key in names], placement) for each in batch
            ]
            inputs, seeds = stack([plan.inputs for plan in plans]), range(start, start + len(batch))
            painted += map(tensor_to_image, edit.sample(inputs, seeds, sampling, progress=False))
        yield name, direction_scores(oracle, cases, painted), painted


def direction_scores(oracle: Extractor, cases: Sequence[DirectedCase], pictures: Sequence[Image.Image]) -> Scores:
    """See measure_directions."""
    assert oracle.prepare is not None
    pairs = zip(cases, pictures, strict=True)
    answers = split_answers(oracle([oracle.prepare(picture.crop(case.box)) for case, picture in pairs]))
    moves, stays, errors = [], [], []
    for case, shape, pattern, colours in zip(cases, *answers, strict=True):
        c, wanted = case.identities["c"], case.identities["wanted"]
        found = {"shape": SHAPES[int(shape.argmax())], "pattern": PATTERNS[int(pattern.argmax())]}
        away = {each: _distance(colours, each.colour) for each in (c, wanted)}
        if case.attribute == "colour":
            moves.append(away[wanted] < away[c])
        else:
            moves.append(found[case.attribute] == getattr(wanted, case.attribute))
        stays.append(np.mean([found[key] == getattr(c, key) for key in found if key != case.attribute]))
        errors.append(_distance(colours, c.second if case.attribute == "colour" else c.colour))
    return {"moves": np.array(moves, float), "rest stays": np.array(stays), "colour error": np.array(errors)}


def _distance(colours: torch.Tensor, colour: tuple[float, float, float]) -> float:
    """Of a colour from the nearer of an object's two (2,3), Lab over 100: Delta E (CIE 1976)."""
    return 100 * float((colours - torch.from_numpy(lab(np.array([colour])))).norm(dim=-1).min())
