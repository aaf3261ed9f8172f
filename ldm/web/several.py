"""Several objects at once: regions with their references are put aside, one after the other, and painted together with
the one that is marked last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from ldm.web.canvas import CanvasValue, canvas_value, has_strokes, mask_from_layers
from ldm.web.errors import sentence_of
from ldm.web.status import error_line, status_line
from ldm.web.uploads import open_upload

ASIDE = "{} put aside: mark the next region, add its reference, and put it aside or press Paint."
Updates = dict[gr.blocks.Block, Any]


class Marked(NamedTuple):
    """layers: of the brush; references: of paths_of."""

    layers: list[Image.Image]
    references: list[str | None]


@dataclass(frozen=True)
class SeveralArea:
    aside: gr.Button
    back: gr.Button


def build_several() -> SeveralArea:
    with gr.Accordion("Several objects at once", open=False, elem_id="several"), gr.Row():
        aside = gr.Button("Put region and reference aside", size="sm", min_width=140, elem_id="aside")
        back = gr.Button("Take all back", size="sm", min_width=140)
    return SeveralArea(aside, back)


def paths_of(reference: str | None, more: Sequence[str] | None) -> list[str | None]:
    """Of the pictures of one object, or learned tokens; without any, None, of which open_upload says that it is
    missing."""
    return [path for path in (reference, *(more or [])) if path] or [None]


def marked_regions(aside: Sequence[Marked], canvas: CanvasValue | None, references: list[str | None]) -> list[Marked]:
    """Those that were put aside and the one that is marked now, unless nothing is painted beside the others."""
    layers = canvas["layers"] if canvas else []
    return [*aside, *([] if aside and not has_strokes(layers) else [Marked(layers, references)])]


class Several:
    """The handlers. reference, more: where references are given; status: how the page says what is right and wrong."""

    def __init__(
        self, area: SeveralArea, canvas: gr.ImageEditor, reference: gr.Image, more: gr.File, status: gr.HTML
    ) -> None:
        self.area, self.canvas, self.reference, self.more, self.status = area, canvas, reference, more, status
        self.aside = gr.State([])  # list of Marked

    def connect(self, photo_path: gr.State, reference_path: gr.State, options: dict[str, Any]) -> None:
        """options: of all events."""
        area = self.area
        inputs = [photo_path, self.canvas, reference_path, self.more, self.aside]
        outputs = [self.aside, self.canvas, reference_path, self.reference, self.more, self.status]
        photo_path.change(lambda: [], None, self.aside, **options)
        area.aside.click(self.put_aside, inputs, outputs, **options)
        area.back.click(self.take_back, photo_path, [self.aside, self.canvas, self.status], **options)

    def put_aside(
        self,
        photo_path: str | None,
        canvas: CanvasValue | None,
        reference_path: str | None,
        more: Sequence[str] | None,
        aside: list[Marked],
    ) -> tuple[Any, ...]:
        """The photo then shows the region's strokes as part of the picture."""
        try:
            photo = open_upload(photo_path, "photo")
            references = paths_of(reference_path, more)
            for path in references:
                open_upload(path, "reference")
            layers = canvas["layers"] if canvas else []
            mask = mask_from_layers(layers, photo)
            shown = canvas_value(canvas["background"] if canvas else photo, mask)["composite"].convert("RGB")
        except Exception as error:
            return *(gr.skip() for _ in range(5)), error_line(sentence_of(error))
        aside = [*aside, Marked(layers, references)]
        count = "One region is" if len(aside) == 1 else f"{len(aside)} regions are"
        value = {"background": shown, "layers": [], "composite": shown}
        return aside, value, None, None, None, status_line(ASIDE.format(count))

    def take_back(self, photo_path: str | None) -> tuple[Any, ...]:
        try:
            canvas = canvas_value(open_upload(photo_path, "photo"))
        except Exception as error:
            return gr.skip(), gr.skip(), error_line(sentence_of(error))
        return [], canvas, status_line("No region is put aside: mark one.")
