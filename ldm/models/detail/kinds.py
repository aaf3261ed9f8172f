"""Which detail paths there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.models.detail.patches import PatchPath
from ldm.models.detail.path import DetailPath
from ldm.models.detail.reference import ReferencePath
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.util import UserError

KINDS: dict[str, type[DetailPath]] = {path.kind: path for path in (ReferencePath, PatchPath)}


def build_detail(unet: UNetModel, settings: Mapping[str, Any]) -> DetailPath:
    """settings: kind, and the arguments of its class. Raises UserError: unknown, missing or wrong ones."""
    arguments = {name: value for name, value in settings.items() if value is not None}
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"detail: its kind is {kind!r}: use one of {', '.join(KINDS)}")
    try:
        return KINDS[kind](unet, **arguments)
    except (TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).split("__init__() ")[-1]
        raise UserError(f"detail: its settings do not fit kind {kind} ({reason}): see configs/detail.yaml") from error
