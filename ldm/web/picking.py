"""Objects on the page: clicks and a loose box become strokes of the brush; a reference loses its background."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from ldm.editing.references import learned_token
from ldm.images import upright_rgb
from ldm.segmentation.objects import Prompt, find_object, without_background
from ldm.util import UserError
from ldm.web.canvas import CanvasValue, canvas_value, mask_from_layers
from ldm.web.errors import sentence_of
from ldm.web.status import error_line, status_line
from ldm.web.uploads import fit_within, open_upload

ON, OFF, CORNER = "the object", "not the object", "corner of a box"
COLOURS = {ON: "#00c853", OFF: "#d50000", CORNER: "#2962ff"}
DOT = 6  # radius of a click's mark, pixels

Pick = tuple[str, int, int]  # ON, OFF or CORNER, and where, in pixels of the upright photo
Updates = dict[gr.blocks.Block, Any]


@dataclass(frozen=True)
class PickArea:
    """picture: what is clicked on; kind: what the next click means."""

    picture: gr.Image
    kind: gr.Radio
    undo: gr.Button
    snap: gr.Button


def build_picking() -> PickArea:
    with gr.Accordion("Click an object", open=False, elem_id="picking"):
        kind = gr.Radio(list(COLOURS), value=ON, label="A click is on", elem_id="pick-kind")
        picture = gr.Image(type="pil", interactive=False, show_label=False, buttons=[], elem_id="pick")
        with gr.Row():
            undo = gr.Button("Undo the last click", size="sm", min_width=120)
            snap = gr.Button("Fit the strokes to the object", size="sm", min_width=120)
    return PickArea(picture, kind, undo, snap)


def prompt_of(picks: Sequence[Pick]) -> Prompt | None:
    """The last two corners, if there are two, and the clicks. None: nothing marks an object yet."""
    points = {kind: tuple((x, y) for name, x, y in picks if name == kind) for kind in COLOURS}
    box = None
    if len(points[CORNER]) > 1:
        (x0, x1), (y0, y1) = (sorted(side) for side in zip(*points[CORNER][-2:], strict=True))
        box = x0, y0, x1 + 1, y1 + 1
    return Prompt(box, points[ON], points[OFF]) if box or points[ON] else None


class Picking:
    """The handlers. canvas: the brush's; status, error: how the page says what is right and what is wrong."""

    def __init__(self, area: PickArea, canvas: gr.ImageEditor, status: gr.HTML, segment: str | None = None):
        self.area, self.canvas, self.status, self.segment = area, canvas, status, segment
        self.picks = gr.State([])  # list of Pick

    def connect(self, photo_path: gr.State, options: dict[str, Any]) -> None:
        """options: of all events."""
        area, outputs = self.area, [self.picks, self.area.picture, self.canvas, self.status]
        photo_path.change(self.begin, photo_path, [self.picks, area.picture], **options)
        area.picture.select(self.click, [photo_path, area.kind, self.picks], outputs, **options)
        area.undo.click(self.undo, [photo_path, self.picks], outputs, **options)
        area.snap.click(self.snap, [photo_path, self.canvas], outputs, **options)

    def begin(self, photo_path: str | None) -> Updates:
        """Another photo: no clicks yet."""
        try:
            picture = canvas_value(open_upload(photo_path, "photo"))["background"] if photo_path else None
        except Exception:  # the page has said what is wrong
            picture = None
        return {self.picks: [], self.area.picture: picture}

    def click(self, photo_path: str | None, kind: str, picks: list[Pick], event: gr.SelectData) -> Updates:
        try:
            photo = open_upload(photo_path, "photo")
            shown, size = canvas_value(photo)["background"].size, upright_rgb(photo).size
            x, y = (
                min(int((at + 0.5) * side / small), side - 1)
                for at, side, small in zip(event.index, size, shown, strict=True)
            )
            return self.show(photo, [*picks, (kind, x, y)])
        except Exception as error:
            return self.wrong(error)

    def undo(self, photo_path: str | None, picks: list[Pick]) -> Updates:
        try:
            return self.show(open_upload(photo_path, "photo"), picks[:-1])
        except Exception as error:
            return self.wrong(error)

    def snap(self, photo_path: str | None, canvas: CanvasValue | None) -> Updates:
        """The strokes' box is loosely around the object."""
        try:
            photo = open_upload(photo_path, "photo")
            box = mask_from_layers(canvas["layers"] if canvas else [], photo).getbbox()
            return self.show(photo, [(CORNER, box[0], box[1]), (CORNER, box[2] - 1, box[3] - 1)])
        except Exception as error:
            return self.wrong(error)

    def show(self, photo: Image.Image, picks: list[Pick]) -> Updates:
        """Raises UserError: no object is found there."""
        rgb, prompt = upright_rgb(photo), prompt_of(picks)
        mask = find_object(rgb, prompt, self.segment) if prompt else None
        value = canvas_value(rgb, mask)
        picture = value["composite"].convert("RGB")
        draw = ImageDraw.Draw(picture)
        for kind, x, y in picks:
            centre = (x + 0.5) * picture.width / rgb.width, (y + 0.5) * picture.height / rgb.height
            draw.circle(centre, DOT, COLOURS[kind], "white", 2)
        words = "The object is marked: correct it by further clicks or the brush." if mask else "Click an object."
        return {self.picks: picks, self.area.picture: picture, self.canvas: value, self.status: status_line(words)}

    def wrong(self, error: Exception) -> Updates:
        return {self.status: error_line(sentence_of(error))}


def cut_out_upload(path: str | None, side: int, block: gr.blocks.Block, segment: str | None) -> tuple[str, Image.Image]:
    """An uploaded reference without its background: its path in the block's cache, and a picture with no side longer
    than `side` to look at. Raises UserError."""
    picture = open_upload(path, "reference")
    if learned_token(picture) is not None:
        raise UserError("a learned token has no background to cut out: leave it as it is")
    cut = without_background(picture, segment)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{Path(path or '').stem}_cutout.png"
        cut.save(file)
        return block.move_resource_to_block_cache(file), fit_within(cut, side)
