"""Ranges of the commands' numbers."""

from __future__ import annotations

import argparse

from ldm.util import UserError


def check_range(opt: argparse.Namespace, name: str, low: int, high: int) -> None:
    """Raises UserError unless low <= --name <= high."""
    value = getattr(opt, name)
    if not low <= value <= high:
        raise UserError(f"--{name} {value} is out of range: use {low} to {high}")
