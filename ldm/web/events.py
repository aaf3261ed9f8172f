"""What happens on the page: a photo, mask, reference or example is chosen, an edit is painted, stopped, looked at.

A handler's parameters are the values of its inputs, and it returns the new values of its outputs, by component or in
their order; connect() says which these are. Gradio reads the annotation gr.SelectData to pass the event itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from ldm.images import note_about_mask
from ldm.util import UserError
from ldm.web.canvas import CanvasValue, canvas_value, mask_from_layers
from ldm.web.errors import report_errors
from ldm.web.examples import Example
from ldm.web.layout import Layout, status_line
from ldm.web.request import EditRequest, parse_request
from ldm.web.uploads import fit_within, open_upload, save_result, upload_path
from ldm.web.worker import EditResult, EditWorker, Progress, Settings

RESULT_SIDE = 1600  # longer side of a result as the page shows it, pixels; the download has the photo's size
GALLERY_SIDE = 320  # the same for several results beside each other
REFERENCE_SIDE = 512
QUICK = {  # events that do not wait for the model
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_id": "quick",
    "concurrency_limit": 4,
}
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}  # edits, of the page and of the call

Updates = dict[gr.blocks.Block, Any]  # component -> its new value


@dataclass(frozen=True)
class SavedResult:
    """A result on the server's disk. photo, picture: paths."""

    photo: str
    picture: str
    settings: Settings


class Events:
    """The handlers of one page, whose layout this is."""

    def __init__(self, worker: EditWorker, layout: Layout, examples: Sequence[Example]):
        self.worker, self.layout, self.examples = worker, layout, examples
        self.photo_path, self.reference_path = gr.State(), gr.State()
        self.results = gr.State([])  # list of SavedResult

    def connect(self) -> None:
        """To be called inside the gr.Blocks of the layout."""
        layout, photo, result = self.layout, self.layout.photo, self.layout.result
        photo_outputs = [self.photo_path, photo.drop, photo.drawing, photo.canvas]
        reference_outputs = [self.reference_path, layout.reference]
        shown = [result.compare, result.download, result.settings]
        idle = [result.status, result.preview]

        photo.drop.upload(self.take_photo, photo.drop, photo_outputs, preprocess=False, **QUICK)
        layout.examples.select(self.take_example, None, [*photo_outputs, *reference_outputs], **QUICK)
        photo.another.click(self.clear_photo, None, photo_outputs, **QUICK)
        photo.mask_file.upload(self.take_mask, [photo.mask_file, self.photo_path], photo.canvas, **QUICK)
        layout.reference.upload(self.take_reference, layout.reference, reference_outputs, preprocess=False, **QUICK)
        layout.reference.clear(lambda: None, None, self.reference_path, **QUICK)
        result.gallery.select(self.choose_result, self.results, shown, **QUICK)
        settings = layout.settings
        painting = layout.paint.click(
            self.paint,
            [
                self.photo_path,
                photo.canvas,
                self.reference_path,
                settings.scale,
                settings.steps,
                settings.sampler,
                settings.strength,
                settings.seed,
                settings.n_samples,
            ],
            [result.status, result.preview, self.results, result.gallery, *shown],
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=result.status,
            scroll_to_output=True,
            **ONE_AT_A_TIME,
        )
        layout.stop.click(None, cancels=[painting]).then(self.show_nothing, None, idle, **QUICK)
        painting.failure(self.show_nothing, None, idle, **QUICK)

    def open_photo(self, path: str | None, canvas: CanvasValue | None) -> Updates:
        """Shows the canvas with the photo in place of the area where photos are dropped; without a photo, the
        reverse."""
        photo = self.layout.photo
        return {
            self.photo_path: path,
            photo.drop: gr.Image(value=None, visible=canvas is None),
            photo.drawing: gr.Column(elem_classes="away" if canvas is None else ""),
            photo.canvas: canvas,
        }

    def clear_photo(self) -> Updates:
        return self.open_photo(None, None)

    def take_photo(self, file: Any) -> Updates:
        try:
            path = upload_path(file, "photo")
            return self.open_photo(path, canvas_value(open_upload(path, "photo")))
        except UserError as error:
            gr.Warning(str(error), duration=None)
            return self.clear_photo()

    def take_mask(self, mask_path: str | None, photo_path: str | None) -> CanvasValue:
        with report_errors():
            mask = open_upload(mask_path, "mask")
            canvas = canvas_value(open_upload(photo_path, "photo"), mask)
            if note := note_about_mask(mask):
                gr.Warning(note, duration=None)
            return canvas

    def take_reference(self, file: Any) -> tuple[str | None, Image.Image | None]:
        try:
            path = upload_path(file, "reference")
            return path, fit_within(open_upload(path, "reference"), REFERENCE_SIDE)
        except UserError as error:
            gr.Warning(str(error), duration=None)
            return None, None

    def take_example(self, event: gr.SelectData) -> Updates:
        example = self.examples[event.index]
        canvas = canvas_value(open_upload(example.image, "photo"), open_upload(example.mask, "mask"))
        reference = str(example.reference)
        return {
            **self.open_photo(str(example.image), canvas),
            self.reference_path: reference,
            self.layout.reference: reference,
        }

    async def paint(
        self, photo_path: str | None, canvas: CanvasValue | None, reference_path: str | None, *numbers: Any
    ) -> AsyncIterator[Updates]:
        """numbers: scale, steps, sampler, strength, seed, n_samples."""
        result = self.layout.result
        with report_errors():
            request = await asyncio.to_thread(read_request, photo_path, canvas, reference_path, *numbers)
            before = (result.compare, result.gallery, result.download, result.settings)
            yield {result.status: status_line("Starting ..."), **{part: gr.update(visible=False) for part in before}}
            async for update in self.worker.stream(request):
                if isinstance(update, Progress):
                    status = status_line(f"Step {update.step} of {update.total}", update)
                    yield {result.status: status, result.preview: gr.Image(value=update.preview, visible=True)}
                else:
                    yield await asyncio.to_thread(self.show_results, photo_path, update)

    def show_results(self, photo_path: str, results: Sequence[EditResult]) -> Updates:
        """Saves the results, and shows the first of them beside all of them."""
        area = self.layout.result
        saved = [
            SavedResult(photo_path, save_result(each, photo_path, area.download), each.settings) for each in results
        ]
        small = [fit_within(each.picture, GALLERY_SIDE) for each in results]
        return {
            area.status: status_line("Done."),
            self.results: saved,
            area.preview: gr.Image(value=None, visible=False),
            area.gallery: gr.Gallery(value=small, visible=len(small) > 1, selected_index=0),
            **self.show_result(saved[0]),
        }

    def show_result(self, saved: SavedResult) -> Updates:
        area = self.layout.result
        before = fit_within(open_upload(saved.photo, "photo"), RESULT_SIDE)
        after = fit_within(open_upload(saved.picture, "picture"), RESULT_SIDE)
        return {
            area.compare: gr.ImageSlider(value=(before, after), visible=True),
            area.download: gr.DownloadButton(value=saved.picture, visible=True),
            area.settings: gr.JSON(value=saved.settings, visible=True),
        }

    def choose_result(self, results: list[SavedResult], event: gr.SelectData) -> Updates:
        with report_errors():
            return self.show_result(results[event.index])

    def show_nothing(self) -> tuple[str, Any]:
        return status_line("Nothing was painted."), gr.Image(value=None, visible=False)


def read_request(
    photo_path: str | None,
    canvas: CanvasValue | None,
    reference_path: str | None,
    scale: Any,
    steps: Any,
    sampler: Any,
    strength: Any,
    seed: Any,
    n_samples: Any,
) -> EditRequest:
    """The page's values as a request. Raises UserError: a picture is missing or bad, nothing is painted, a number is
    not a number."""
    photo = open_upload(photo_path, "photo")
    reference = open_upload(reference_path, "reference")
    mask = mask_from_layers(canvas["layers"] if canvas else [], photo)
    return parse_request(
        photo,
        mask,
        reference,
        scale=scale,
        steps=steps,
        sampler=sampler,
        strength=strength,
        seed=seed,
        n_samples=n_samples,
    )
