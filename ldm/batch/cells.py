"""What a cell of a table says: numbers, yes or no, coordinates, as spreadsheets and programs write them.

Those of one argument raise ValueError where the cell is not of their kind."""

from __future__ import annotations

import re

from ldm.editing.options import WHOLE_PHOTO, Context, Layer
from ldm.editing.regions import Point, Region, parse_box, parse_point
from ldm.util import UserError


def number(cell: str) -> float:
    """2.5, or 2,5 as spreadsheets of some countries write it."""
    return float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)


def whole(cell: str) -> int:
    """7, or 7.0 as programs write whole numbers in a column with empty cells."""
    if re.fullmatch(r"[+-]?\d+", cell):
        return int(cell)
    value = float(cell)
    if not value.is_integer() or abs(value) >= 2**53:  # beyond, digits are lost
        raise ValueError(cell)
    return int(value)


def flag(cell: str) -> bool:
    """yes, true, 1 or no, false, 0."""
    words = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    return words[cell.lower()] if cell.lower() in words else bool(("0", "1").index(str(whole(cell))))


def context(cell: str) -> Context:
    """A length, or the whole photo."""
    return WHOLE_PHOTO if cell.lower() == WHOLE_PHOTO else number(cell)


def together(cell: str) -> bool | tuple[Layer, ...]:
    """yes or no, or for each region a guidance scale, or scale@strength: 5 7.5@0.6."""
    words = cell.replace("|", " ").split()
    return flag(cell) if len(words) == 1 else tuple(tuple(map(number, word.split("@"))) for word in words)


WRONG = {
    flag: "neither yes nor no",
    together: "neither yes, no nor, for each region, a scale or scale@strength",
    whole: "not a whole number",
}


def _words(cell: str) -> list[str]:
    return re.sub(r"[\[\](){}\s,;]+", " ", cell).split()


def box(cell: str) -> Region:
    """x0,y0,x1,y1. Raises UserError."""
    words = _words(cell)
    return parse_box(",".join(words) if len(words) == 4 else cell)


def points(name: str, cell: str) -> tuple[Point, ...]:
    """x,y x,y ...; name: of the column. Raises UserError."""
    words = _words(cell)
    if len(words) % 2:
        raise UserError(f"{name} {cell!r} is not of the form x,y x,y x,y: give pixels of the photo")
    return tuple(parse_point(f"{x},{y}") for x, y in zip(words[::2], words[1::2], strict=True))
