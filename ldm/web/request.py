"""What a person asks for, on the page or by the call /edit, checked and with the types of the pipeline."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from ldm.editing.options import WHOLE_PHOTO, Blending, Placement, Sampling, Selection
from ldm.editing.references import References
from ldm.models.diffusion.presets import resolve_preset
from ldm.util import UserError

Number = TypeVar("Number", int, float)
OWN, PUBLISHED = "own", "published"  # beside the presets: sampler and steps of one's own; 50 steps of PLMS
AUTOMATIC = "by the region"  # as context
CHECKED = {True: "pnp", False: None}  # a checkbox as keep_layout


@dataclass(frozen=True)
class EditRequest:
    """image, mask, reference: as opened; mask: 255 = paint; reference: a tuple for several pictures of one object;
    seed: of the first of n_samples results; others: further regions' masks and references, painted together with it.

    Raises UserError for a number that is out of range."""

    image: Image.Image
    mask: Image.Image
    reference: References
    sampling: Sampling = Sampling()
    placement: Placement = Placement()
    blending: Blending = Blending()
    seed: int = 321
    n_samples: int = 1
    selection: Selection = Selection()
    others: tuple[tuple[Image.Image, References], ...] = ()

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise UserError(f"the number of pictures {self.n_samples} is out of range: use 1 or more")
        for seed in self.seeds:
            self.selection.seeds(seed)

    @property
    def seeds(self) -> list[int]:
        """One for each result, the first of those that are tried for it."""
        return [self.seed + i * self.selection.best for i in range(self.n_samples)]


def parse_number(value: object, name: str, kind: type[Number], example: str) -> Number:
    """A number as a browser or a call sends it, as text perhaps. Raises UserError: not a number of this kind."""
    try:
        if kind is int and not isinstance(value, str) and value != int(value):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        noun = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} {value!r:.40} is not {noun}: use for example {example}") from error


def parse_truth(value: object, name: str) -> bool:
    """Raises UserError: neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"{name} {value!r:.40} is neither true nor false: correct it")
    return value


def parse_request(
    image: Image.Image,
    mask: Image.Image,
    reference: References,
    *,
    scale: object,
    steps: object,
    sampler: object,
    strength: object,
    seed: object,
    n_samples: object = 1,
    preset: object = OWN,
    context: object = AUTOMATIC,
    grow: object = 0,
    feather: object = None,
    background: object = "exact",
    best: object = 1,
    best_preset: object = "draft",
    keep_layout: object = None,
    keep: object = None,
    mask_from_difference: object = False,
    mix: object = None,
    others: tuple[tuple[Image.Image, References], ...] = (),
    detail_scale: object = None,
) -> EditRequest:
    """preset: a preset's name, PUBLISHED, or OWN for this sampler and these steps; context: AUTOMATIC, "photo" or a
    number; feather, mix: None or empty if not given; seed: None or empty for a random one; keep_layout: a method, or a
    checkbox's True or False, beside which keep means nothing. With keep_layout a preset is its number of steps.
    detail_scale: None without a detail path. Raises UserError: not a number, or one out of range."""
    layout = CHECKED[keep_layout] if isinstance(keep_layout, bool) else keep_layout or None
    kept = {} if layout is None else {"keep_layout": str(layout)}
    if keep_layout is not False and keep is not None:
        kept["keep"] = parse_number(keep, "keep", float, "0.6")
    how = {} if preset == PUBLISHED else {"preset": str(preset)}
    if preset == OWN:
        how = {"sampler": str(sampler), "steps": parse_number(steps, "steps", int, "50")}
        if layout and sampler == "plms":  # the default, which gives way to ddim
            del how["sampler"]
    elif how and layout:
        how = {"steps": resolve_preset(str(preset)).steps}
    sampling = Sampling.choose(
        **how,
        scale=parse_number(scale, "scale", float, "5"),
        strength=parse_number(strength, "strength", float, "1"),
        **kept,
        detail_scale=None if detail_scale is None else parse_number(detail_scale, "likeness", float, "1"),
    )
    lengths = {AUTOMATIC: None, WHOLE_PHOTO: WHOLE_PHOTO}
    placement = Placement(
        context=lengths[context] if context in lengths else parse_number(context, "context", float, "3"),
        grow=parse_number(grow, "grow", float, "10"),
        mask_from_difference=parse_truth(mask_from_difference, "mask_from_difference"),
        mix=None if mix in (None, "") else parse_number(mix, "mix", float, "0.5"),
        together=bool(others),
    )
    return EditRequest(
        image,
        mask,
        reference,
        sampling,
        placement,
        Blending(str(background), None if feather in (None, "") else parse_number(feather, "feather", float, "12")),
        seed=random.randrange(2**32) if seed in (None, "") else parse_number(seed, "seed", int, "321"),
        n_samples=parse_number(n_samples, "the number of pictures", int, "1"),
        selection=Selection(parse_number(best, "best", int, "4"), str(best_preset)),
        others=others,
    )
