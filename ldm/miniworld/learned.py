"""Learning an object in the small world: edits with a learned token, or with an adapter, against edits with the mean of
the same pictures' tokens; and what an adapter does to edits with other references."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from ldm.checkpoint.adapters import merge_into
from ldm.conventions import tensor_to_image
from ldm.data.bench.squares import cut
from ldm.data.masks import reference_region
from ldm.editing.inputs import Condition, stack
from ldm.editing.options import Sampling
from ldm.editing.painter import Painter
from ldm.editing.regions import Region
from ldm.evaluation.features import Extractor
from ldm.miniworld.crops import labels_of
from ldm.miniworld.identity import HELD_OUT, Identity, draw_held_out, draw_identity
from ldm.miniworld.neighbours import STREAM, Case, Scores, draw_case
from ldm.miniworld.scene import scene
from ldm.miniworld.scores import identity_scores
from ldm.miniworld.write import SCENE_SIZE
from ldm.training.adapters import KINDS, LORA, current_adapter
from ldm.training.object_learners import TOKEN, AdapterLearner, TokenLearner
from ldm.training.objects import ObjectPictures, look_at

if TYPE_CHECKING:
    from ldm.methods.learn_token import Learning

PICTURES, PHOTOS, PRIOR = 5, 6, 4  # of an object; that it is painted into; references of other things that are kept
SAMPLING = Sampling(sampler="dpm++", steps=12)


@dataclass(frozen=True)
class Thing:
    """pictures: of an object, PICTURES scenes, with the region of each; identity: the object's; cases: photos to paint
    it into, whose own references are other things; prior: references of yet others."""

    pictures: tuple[Image.Image, ...]
    regions: tuple[Region, ...]
    identity: Identity
    cases: tuple[Case, ...]
    prior: tuple[Image.Image, ...]

    def shown(self, i: int) -> Image.Image:
        """The object, cut out of a picture."""
        return self.pictures[i].crop(self.regions[i].box)


def draw_thing(number: int) -> Thing:
    """Equal numbers draw equal things; twelve in a row have the twelve pairs of shape and pattern that training never
    showed."""
    rng = np.random.default_rng((0, STREAM + 5, number))
    identities = (draw_held_out(rng) for _ in count())
    pair = sorted(HELD_OUT)[number % len(HELD_OUT)]
    identity = next(each for each in identities if (each.shape, each.pattern) == pair)
    found: list[tuple[Image.Image, Region]] = []
    for attempt in count():
        pixels, objects = scene((0, STREAM + 6, number, attempt), SCENE_SIZE, (1, 1), draw=lambda _: identity)
        found += [(Image.fromarray(pixels), Region(box=each.box)) for each in objects if each.seen > 0.95]
        if len(found) == PICTURES:
            break
    pictures, regions = zip(*found, strict=True)
    others: list[Image.Image] = []
    for attempt in count():
        pixels, objects = scene((0, STREAM + 7, number, attempt), SCENE_SIZE, draw=draw_identity)
        others += [cut(pixels, reference_region(each.box, SCENE_SIZE)) for each in objects]
        if len(others) >= PRIOR:
            break
    cases = tuple(draw_case(PHOTOS * number + i) for i in range(PHOTOS))
    return Thing(pictures, regions, identity, cases, tuple(others[:PRIOR]))


@dataclass(frozen=True)
class Way:
    """pictures: how many there are; learns: what learns from them, TOKEN, LORA or one of KINDS, or nothing; prior:
    whether the prior is kept."""

    pictures: int
    learns: str | None = None
    prior: bool = False


WAYS = {
    **{f"mean of {n}" if n > 1 else "1 picture": Way(n) for n in (1, 3, PICTURES)},
    **{f"token, {n}": Way(n, TOKEN) for n in (1, 3, PICTURES)},
    **{f"{kind}, {PICTURES}": Way(PICTURES, kind) for kind in (LORA, *KINDS)},
    f"biases, {PICTURES}, `--prior`": Way(PICTURES, "biases", True),
}


def measure_learned(
    edit: Painter,
    oracle: Extractor,
    things: Sequence[Thing],
    ways: Mapping[str, Way],
    steps: int,
    rates: Mapping[str, float],
) -> Iterator[tuple[str, Scores, list[Image.Image]]]:
    """Of each way, for every thing the mean over its photos: shape, pattern and colour error, as the oracle sees them,
    of edits with the thing; of edits with other references, which a token leaves as they are; the first photos. rates:
    learning rates by what learns."""
    from ldm.methods.learn_token import Learning

    unchanged = [_judged(oracle, thing, *_others(edit, thing)) for thing in things]
    for name, way in ways.items():
        rows, pictures = [], []
        for thing, before in zip(things, unchanged, strict=True):
            seen = look_at(edit, thing.pictures[: way.pictures], thing.regions[: way.pictures])
            how = Learning(steps, rate=rates[way.learns]) if way.learns else None
            painter, token = _learned(edit, seen, way, thing, how)
            painted = _paint(painter, thing, [token] * PHOTOS)
            own = _judged(oracle, thing, painted, [thing.identity] * PHOTOS)
            others = before if painter is edit else _judged(oracle, thing, *_others(painter, thing))
            rows.append(own | {f"others' {key}": value for key, value in others.items()})
            pictures.append(painted[0])
        yield name, {key: np.array([row[key] for row in rows]) for key in rows[0]}, pictures


def _learned(
    edit: Painter, seen: ObjectPictures, way: Way, thing: Thing, how: Learning | None
) -> tuple[Painter, Tensor]:
    """What paints the thing, and the token that it is painted by."""
    from ldm.methods.learn_weights import Progress

    start = seen.start(edit)
    if way.learns is None or how is None:
        return edit, start.token
    if way.learns == TOKEN:
        learner = TokenLearner(edit, seen, start)
        for _ in learner.steps(how):
            pass
        return edit, learner.learned.token
    prior = seen.prior(edit, thing.prior, how.seed, SAMPLING) if way.prior else None
    learning, merged = (copy.deepcopy(edit.model) for _ in range(2))
    plain = Painter(learning, edit.precision, fast=False)
    for _ in AdapterLearner(plain, seen, way.learns, prior, 1.0, Progress(), how.seed).steps(how):
        pass
    merge_into(merged, [(current_adapter(learning), 1.0)])
    return Painter(merged, edit.precision), start.token


def _others(edit: Painter, thing: Thing) -> tuple[list[Image.Image], list[Identity]]:
    """The photos, each with its own reference, and what that shows."""
    return _paint(edit, thing, [None] * PHOTOS), [case.new for case in thing.cases]


def _paint(edit: Painter, thing: Thing, tokens: Sequence[Tensor | None]) -> list[Image.Image]:
    """The photos, each by a token or by its own reference."""
    inputs = [edit.prepare(case.photo, case.mask, case.reference) for case in thing.cases]
    batch = replace(stack(inputs), conditions=tuple(Condition((token,)) for token in tokens))
    return [*map(tensor_to_image, edit.sample(batch, range(PHOTOS), SAMPLING, progress=False))]


def _judged(
    oracle: Extractor, thing: Thing, painted: Sequence[Image.Image], shown: Sequence[Identity]
) -> dict[str, float]:
    assert oracle.prepare is not None
    pairs = zip(painted, thing.cases, strict=True)
    answers = oracle([oracle.prepare(picture.crop(case.box)) for picture, case in pairs])
    scores = identity_scores(answers, [labels_of(asdict(each)) for each in shown])
    return {key.replace("_", " "): float(values.mean()) for key, values in scores.items()}
