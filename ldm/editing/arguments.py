"""The arguments of PaintByExample's call: names, one value or a list of them, and what each edit gets of them."""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

from ldm.editing.marked import MarkedPhoto
from ldm.editing.names import FLAG_NAMES
from ldm.editing.options import Placement, check_seed
from ldm.editing.pictures import KINDS, is_one_picture
from ldm.editing.references import References
from ldm.editing.regions import Region
from ldm.util import UserError


def takes_flag_names(call: Callable[..., Any]) -> Callable[..., Any]:
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


def one_region(
    mask: Any, box: Any, polygon: Any, alpha: bool, snap: Any = None, click: Any = None, click_not: Any = None
) -> Any:
    """The mask, or what is given in its place: a region, or a list of them. Raises UserError: two of them."""
    given = {name: value for name, value in (("box", box), ("polygon", polygon)) if value is not None}
    given |= {"alpha": True} if alpha else {}
    clicked = {"snap": snap, "click": click, "click_not": click_not}
    clicked = {name: value for name, value in clicked.items() if value is not None}
    if len(given) + (mask is not None) + bool(clicked) > 1:
        raise UserError(
            "mask, box, polygon, alpha and click or snap exclude each other: give one, or several as"
            " regions=[Region(...), ...]"
        )
    given |= clicked
    for name, depth in (("box", 1), ("polygon", 2), ("snap", 1)):
        if len(given) == 1 and name in given and _depth(given[name]) > depth:
            return [Region(**{name: each}) for each in given[name]]
    return Region(**given) if given else mask


def _depth(value: Any) -> int:
    """How deep lists are nested: 1 for a box, 2 for a polygon, one more for a list of them."""
    return 1 + _depth(value[0]) if isinstance(value, list | tuple) and value else getattr(value, "ndim", 0)


def photos_and_seeds(
    image: Any,
    seed: Any,
    mask: Any,
    reference: Any,
    regions: Sequence[Region] | None,
    references: Sequence[References] | None,
    control_image: Any = None,
    *,
    n_samples: int,
    placement: Placement,
    best: int = 1,
) -> tuple[list[MarkedPhoto], list[int], list[dict[str, Any]]]:
    """The arguments of a call -> its photos, each n_samples times, and for each a seed and what its settings say of
    both. control_image: None, one for all photos or one for each; best: seeds that a sample tries, from its own on.
    Raises UserError, TypeError."""
    if regions is None and references is None:
        if mask is None:
            raise UserError("no region is marked: give mask, box, polygon, alpha or regions")
        if reference is None:
            raise UserError("no reference is given: give one as reference")
        columns = {"mask": mask, "reference": reference}
    else:
        if mask is not None or reference is not None:
            raise UserError("mask and reference exclude regions and references: leave out one pair of them")
        if not regions or not references:
            raise UserError("regions or references are missing: give both, one reference for each region or for all")
        columns = {}
    columns |= {} if control_image is None else {"control_image": control_image}
    photos, seeds, settings = [], [], []
    for photo, first, *pair in _rows(image=image, seed=seed, **columns):
        control = None if control_image is None else pair.pop()
        where = regions or [pair[0] if isinstance(pair[0], Region) else Region(mask=pair[0])]
        what = references or [pair[1]]
        marked = MarkedPhoto.mark(photo, where, what, placement, control)
        groups = [[_path_of(each) for each in (group if isinstance(group, tuple) else (group,))] for group in what]
        places = [region.settings for region in where]
        own: dict[str, Any] = {  # without the names of pictures in memory, which have none
            "image": _path_of(photo) or None,
            "regions": None if {"mask": ""} in places else places,
            "references": groups if all(map(all, groups)) else None,
            "control_image": _path_of(control) or None,
        }
        for i in range(n_samples):
            check_seed(own_seed := int(first) + i * best)
            photos.append(marked)
            seeds.append(own_seed)
            settings.append(own | {"seed": own_seed})
    return photos, seeds, settings


def _path_of(picture: Any) -> str:
    """Where a picture was read from; empty if it was in memory."""
    return os.fspath(picture if isinstance(picture, str | os.PathLike) else getattr(picture, "filename", "") or "")


def is_one_for_all(value: Any) -> bool:
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
    lists = {name: column for name, column in columns.items() if not is_one_for_all(column)}
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
