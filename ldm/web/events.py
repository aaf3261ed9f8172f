"""What happens on the page: a photo, mask, reference or example is chosen, an edit is painted, stopped, looked at.

A handler's parameters are the values of its inputs, and it returns the new values of its outputs, by component or in
their order; connect() says which these are. Gradio reads the annotation gr.SelectData to pass the event itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr
from PIL import Image

from ldm.models.diffusion.presets import resolve_preset
from ldm.models.diffusion.stability import LARGEST_SCALE, stable_scale
from ldm.web.canvas import CanvasValue, canvas_value, mask_from_layers
from ldm.web.errors import sentence_of
from ldm.web.examples import Example
from ldm.web.layout import WELCOME, Layout, preset_choices
from ldm.web.picking import Picking, cut_out_upload
from ldm.web.request import OWN, PUBLISHED, EditRequest, parse_request
from ldm.web.several import Marked, Several, marked_regions, paths_of
from ldm.web.status import error_line, status_line
from ldm.web.uploads import fit_within, open_upload, save_result, upload_path
from ldm.web.worker import EditResult, EditWorker, Progress, Settings

RESULT_SIDE = 1600  # longer side of a result as the page shows it, pixels; the download has the photo's size
GALLERY_SIDE = 320  # the same for several results beside each other
REFERENCE_SIDE = 512
HISTORY = 24  # results of a visit that can be looked at again
READY = "Brush over what is to be replaced, add a reference, and press Paint."
SCROLL_ON_PHONES = """() => {  // the result is put into the page after the event, so it is waited for
    const scroll = (tries) => {
        const result = document.getElementById('compare');
        if (result?.querySelector('img')) result.scrollIntoView({block: 'start', behavior: 'smooth'});
        else if (tries) setTimeout(scroll, 100, tries - 1);
    };
    if (window.innerWidth <= 640) scroll(50);
}"""
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
    """A result on the server's disk. photo, picture: paths; small: for galleries."""

    photo: str
    picture: str
    settings: Settings
    small: Image.Image


class Events:
    """The handlers of one page, whose layout this is."""

    def __init__(self, worker: EditWorker, layout: Layout, examples: Sequence[Example], segment: str | None = None):
        """segment: what finds objects, see ldm.segmentation.objects."""
        self.worker, self.layout, self.examples, self.segment = worker, layout, examples, segment
        self.picking = Picking(layout.photo.picking, layout.photo.canvas, layout.status, segment)
        self.several = Several(
            *(layout.several, layout.photo.canvas, layout.reference, layout.more_references, layout.status)
        )
        self.photo_path, self.reference_path = gr.State(), gr.State()
        self.results, self.history = gr.State([]), gr.State([])  # lists of SavedResult
        self.shown = gr.State()  # the SavedResult that is looked at

    def connect(self, page: gr.Blocks) -> None:
        """To be called inside the gr.Blocks of the layout."""
        layout, photo, result, settings = self.layout, self.layout.photo, self.layout.result, self.layout.settings
        status = layout.status
        photo_outputs = [self.photo_path, photo.drop, photo.drawing, photo.canvas, status]
        reference_outputs = [self.reference_path, layout.reference, status]
        shown = [self.shown, result.compare, result.download, result.further, result.settings, status]
        idle = [status, result.preview]

        page.load(self.show_times, None, settings.preset, **QUICK)
        photo.drop.upload(self.take_photo, photo.drop, photo_outputs, preprocess=False, **QUICK)
        layout.examples.select(self.take_example, None, [*photo_outputs, *reference_outputs[:2]], **QUICK)
        photo.another.click(self.clear_photo, None, photo_outputs, **QUICK)
        mask_inputs = [photo.mask_file, self.photo_path]
        photo.mask_file.upload(self.take_mask, mask_inputs, [photo.canvas, status], **QUICK)
        layout.reference.upload(self.take_reference, layout.reference, reference_outputs, preprocess=False, **QUICK)
        layout.token.upload(self.open_reference, layout.token, reference_outputs, **QUICK)
        layout.cut_out.click(self.cut_out, self.reference_path, reference_outputs, **QUICK)
        self.picking.connect(self.photo_path, QUICK)
        self.several.connect(self.photo_path, self.reference_path, QUICK)
        layout.reference.clear(lambda: None, None, self.reference_path, **QUICK)
        settings.preset.change(self.choose_preset, settings.preset, [settings.sampler, settings.steps], **QUICK)
        settings.keep_layout.change(lambda on: gr.Slider(visible=on), settings.keep_layout, settings.keep, **QUICK)
        how = [settings.preset, settings.sampler, settings.steps, settings.keep_layout]
        for event in (page.load, *(each.change for each in how)):
            event(self.say_stable_scale, how, settings.scale, **QUICK)
        result.gallery.select(self.choose_result, self.results, shown, **QUICK)
        result.history.select(self.choose_result, self.history, shown, **QUICK)
        result.further.click(self.edit_further, self.shown, photo_outputs, **QUICK)
        numbers = [getattr(settings, each.name) for each in fields(settings)]
        painting = layout.paint.click(
            self.paint,
            [
                *[self.photo_path, photo.canvas, self.reference_path, layout.more_references, self.several.aside],
                *[self.history, *numbers],
            ],
            [
                *[result.preview, self.results, result.gallery, self.history, result.history, settings.preset],
                *shown,
            ],
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=status,
            **ONE_AT_A_TIME,
        )
        layout.stop.click(None, cancels=[painting]).then(self.show_nothing, None, idle, **QUICK)
        painting.failure(self.show_nothing, None, idle, **QUICK)
        painting.success(None, js=SCROLL_ON_PHONES)

    def open_photo(self, path: str | None, canvas: CanvasValue | None, message: str = "") -> Updates:
        """Shows the canvas with the photo in place of the area where photos are dropped; without a photo, the
        reverse. message: what is wrong."""
        photo = self.layout.photo
        return {
            self.photo_path: path,
            photo.drop: gr.Image(value=None, visible=canvas is None),
            photo.drawing: gr.Column(elem_classes="away" if canvas is None else ""),
            photo.canvas: canvas,
            self.layout.status: error_line(message) if message else status_line(WELCOME if canvas is None else READY),
        }

    def clear_photo(self) -> Updates:
        return self.open_photo(None, None)

    def take_photo(self, file: Any) -> Updates:
        try:
            path = upload_path(file, "photo")
            return self.open_photo(path, canvas_value(open_upload(path, "photo")))
        except Exception as error:
            return self.open_photo(None, None, sentence_of(error))

    def take_mask(self, mask_path: str | None, photo_path: str | None) -> Updates:
        try:
            canvas = canvas_value(open_upload(photo_path, "photo"), open_upload(mask_path, "mask"))
        except Exception as error:
            return self.wrong(error)
        return {self.layout.photo.canvas: canvas, self.layout.status: status_line(READY)}

    def take_reference(self, file: Any) -> Updates:
        try:
            return self.open_reference(upload_path(file, "reference"))
        except Exception as error:
            return {self.reference_path: None, self.layout.reference: None, **self.wrong(error)}

    def open_reference(self, path: str | None) -> Updates:
        """path: of a picture or of a learned token, which is shown by its picture."""
        try:
            picture, status = fit_within(open_upload(path, "reference"), REFERENCE_SIDE), status_line(READY)
        except Exception as error:
            path, picture, status = None, None, error_line(sentence_of(error))
        return {self.reference_path: path, self.layout.reference: picture, self.layout.status: status}

    def cut_out(self, path: str | None) -> Updates:
        try:
            path, picture = cut_out_upload(path, REFERENCE_SIDE, self.layout.result.download, self.segment)
        except Exception as error:
            return self.wrong(error)
        return {self.reference_path: path, self.layout.reference: picture, self.layout.status: status_line(READY)}

    def take_example(self, event: gr.SelectData) -> Updates:
        example = self.examples[event.index]
        canvas = canvas_value(open_upload(example.image, "photo"), open_upload(example.mask, "mask"))
        reference = str(example.reference)
        return {
            **self.open_photo(str(example.image), canvas),
            self.reference_path: reference,
            self.layout.reference: reference,
        }

    def edit_further(self, shown: SavedResult | None) -> Updates:
        """The result becomes the photo, with nothing painted on it."""
        try:
            path = shown.picture if shown else None
            return self.open_photo(path, canvas_value(open_upload(path, "result")))
        except Exception as error:
            return self.wrong(error)

    def choose_preset(self, preset: str) -> tuple[Any, Any]:
        """Sampler and steps are there for those who choose their own."""
        return gr.Dropdown(visible=preset == OWN), gr.Slider(visible=preset == OWN)

    def say_stable_scale(self, preset: str, sampler: str, steps: int, keep_layout: bool) -> gr.Slider:
        """Says under the slider above which scale colours may become too strong, if that is within its range."""
        how = (sampler, int(steps)) if preset == OWN else resolve_preset(None if preset == PUBLISHED else preset)[:2]
        limit = stable_scale("ddim" if keep_layout else how[0], how[1])
        return gr.Slider(info=f"Above {limit:g}, colours may become far too strong" if limit < LARGEST_SCALE else "")

    def show_times(self) -> gr.Dropdown:
        return gr.Dropdown(choices=preset_choices(self.worker.step_seconds))

    async def paint(
        self,
        photo_path: str | None,
        canvas: CanvasValue | None,
        reference_path: str | None,
        more_references: Sequence[str] | None,
        aside: Sequence[Marked],
        history: Sequence[SavedResult],
        *numbers: Any,
    ) -> AsyncIterator[Updates]:
        """numbers: the values of the settings, in their order."""
        result, status = self.layout.result, self.layout.status
        named = dict(zip((each.name for each in fields(self.layout.settings)), numbers, strict=True))
        try:
            regions = marked_regions(aside, canvas, paths_of(reference_path, more_references))
            request = await asyncio.to_thread(read_request, photo_path, regions, named)
            before = (result.compare, result.gallery, result.download, result.further)
            yield {status: status_line("Starting ..."), **{part: gr.update(visible=False) for part in before}}
            async for update in self.worker.stream(request):
                if isinstance(update, Progress):
                    line = status_line(f"Step {update.step} of {update.total}", update)
                    yield {status: line, result.preview: gr.Image(value=update.preview, visible=True)}
                else:
                    yield await asyncio.to_thread(self.show_results, photo_path, update, history)
        except Exception as error:
            yield {**self.wrong(error), result.preview: gr.Image(value=None, visible=False)}

    def show_results(
        self, photo_path: str, results: Sequence[EditResult], history: Sequence[SavedResult] = ()
    ) -> Updates:
        """Saves the results, and shows the first of them beside all of them."""
        area = self.layout.result
        saved = []
        for each in results:
            small = fit_within(each.picture, GALLERY_SIDE)
            saved.append(SavedResult(photo_path, save_result(each, photo_path, area.download), each.settings, small))
        history = [*saved, *history][:HISTORY]
        return {
            self.results: saved,
            self.history: history,
            area.preview: gr.Image(value=None, visible=False),
            area.gallery: gr.Gallery(value=[each.small for each in saved], visible=len(saved) > 1, selected_index=0),
            area.history: gr.Gallery(value=[each.small for each in history], selected_index=None, visible=True),
            self.layout.settings.preset: self.show_times(),
            **self.show_result(saved[0]),
        }

    def show_result(self, saved: SavedResult) -> Updates:
        area = self.layout.result
        before = fit_within(open_upload(saved.photo, "photo"), RESULT_SIDE)
        after = fit_within(open_upload(saved.picture, "picture"), RESULT_SIDE)
        return {
            self.layout.status: status_line("Done."),
            self.shown: saved,
            area.compare: gr.ImageSlider(value=(before, after), visible=True),
            area.download: gr.DownloadButton(value=saved.picture, visible=True),
            area.further: gr.Button(visible=True),
            area.settings: gr.JSON(value=saved.settings, visible=True),
        }

    def choose_result(self, results: list[SavedResult], event: gr.SelectData) -> Updates:
        try:
            return self.show_result(results[event.index])
        except Exception as error:
            return self.wrong(error)

    def wrong(self, error: Exception) -> Updates:
        """The status line carries the sentence until the next one."""
        return {self.layout.status: error_line(sentence_of(error))}

    def show_nothing(self) -> tuple[str, Any]:
        return status_line("Nothing was painted."), gr.Image(value=None, visible=False)


def read_request(
    photo_path: str | None,
    regions: Sequence[Marked],
    numbers: dict[str, Any],
) -> EditRequest:
    """The page's values as a request. Raises UserError: a picture is missing or bad, nothing is painted, a number is
    not a number."""
    photo = open_upload(photo_path, "photo")
    groups = [tuple(open_upload(path, "reference") for path in paths) for _, paths in regions]
    masks = [mask_from_layers(layers, photo) for layers, _ in regions]
    first, *others = zip(masks, groups, strict=True)
    return parse_request(photo, *first, **numbers, others=tuple(others))
