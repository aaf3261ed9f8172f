"""Examples to click: photo, mask and reference of each, fit for the model."""

from __future__ import annotations

from pathlib import Path

from ldm.data.bench.cocoee import COCOImageDataset, case_path
from ldm.pipeline import PaintByExample
from ldm.util import shipped

ROOT = shipped("examples")


def examples_for(edit: PaintByExample) -> list[tuple[Path, Path, Path]]:
    """Of the small world for a model of its size, else photographs."""
    if edit.native_size == 64:
        bench = ROOT / "mini"
        kinds = ("GT_3500", "Mask_bbox_3500", "Ref_3500")
        return [tuple(case_path(bench, kind, name) for kind in kinds) for name in COCOImageDataset(str(bench)).ids]
    names = sorted(path.stem for path in (ROOT / "image").glob("*.jpg"))
    return [(ROOT / f"image/{name}.jpg", ROOT / f"mask/{name}.png", ROOT / f"reference/{name}.jpg") for name in names]
