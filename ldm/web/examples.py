"""Examples to choose from: photo, mask and reference of each, of the kind that the model can paint."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ldm.data.bench.cocoee import COCOImageDataset, case_path
from ldm.pipeline import PaintByExample
from ldm.util import shipped

EXAMPLES = shipped("examples")
SMALL = 256  # pixels; smaller native sizes are those of the small world's models


class Example(NamedTuple):
    """Files of one edit. mask: 255 = paint."""

    image: Path
    mask: Path
    reference: Path


def paints_small_world(edit: PaintByExample) -> bool:
    """Whether this is a model of the small world's size, which cannot paint photographs."""
    return edit.native_size < SMALL


def examples_for(edit: PaintByExample) -> list[Example]:
    """Scenes of the small world for a model of its size, photographs for any other."""
    if paints_small_world(edit):
        bench = EXAMPLES / "mini"
        kinds = ("GT_3500", "Mask_bbox_3500", "Ref_3500")
        return [Example(*(case_path(bench, kind, name) for kind in kinds)) for name in COCOImageDataset(str(bench)).ids]
    folders = (("image", "jpg"), ("mask", "png"), ("reference", "jpg"))
    names = sorted(path.stem for path in (EXAMPLES / "image").glob("*.jpg"))
    return [Example(*(EXAMPLES / folder / f"{name}.{ending}" for folder, ending in folders)) for name in names]
