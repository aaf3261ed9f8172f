"""What stands on the page and where; what happens on a click is in ldm.web.events.

Each function builds one part inside the column or row that is open, and returns its components."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from ldm.models.diffusion.sampling import SAMPLERS
from ldm.web.canvas import BRUSH, thumbnail
from ldm.web.examples import Example
from ldm.web.worker import Progress

SOURCES = ["upload", "clipboard"]


@dataclass(frozen=True)
class PhotoArea:
    """The place where a photo is dropped and, hidden until there is one, the canvas with its buttons."""

    drop: gr.Image
    drawing: gr.Column
    canvas: gr.ImageEditor
    another: gr.Button
    mask_file: gr.UploadButton


@dataclass(frozen=True)
class SettingsArea:
    """Named like the arguments of ldm.web.request.parse_request."""

    scale: gr.Slider
    steps: gr.Slider
    n_samples: gr.Slider
    sampler: gr.Dropdown
    strength: gr.Slider
    seed: gr.Textbox


@dataclass(frozen=True)
class ResultArea:
    """A line of status, the preview while an edit samples, and after it the result and its settings."""

    status: gr.HTML
    preview: gr.Image
    compare: gr.ImageSlider
    gallery: gr.Gallery
    download: gr.DownloadButton
    settings: gr.JSON


@dataclass(frozen=True)
class Layout:
    """All components that something happens to."""

    photo: PhotoArea
    reference: gr.Image
    settings: SettingsArea
    paint: gr.Button
    stop: gr.Button
    result: ResultArea
    examples: gr.Gallery


def build_layout(examples: Sequence[Example]) -> Layout:
    """The page in two columns, on a phone one above the other: what goes in, what comes out."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            photo = build_photo()
            reference, settings = build_reference_and_settings()
            with gr.Row():
                paint = gr.Button("Paint", variant="primary", scale=3, min_width=180)
                stop = gr.Button("Stop", scale=1, min_width=90)
        with gr.Column(min_width=320):
            result = build_result()
            gallery = build_examples(examples)
    return Layout(photo, reference, settings, paint, stop, result, gallery)


def build_photo() -> PhotoArea:
    drop = gr.Image(label="Photo", sources=SOURCES, height=400, elem_id="photo")
    with gr.Column(elem_id="drawing", elem_classes="away") as drawing:
        canvas = gr.ImageEditor(
            label="Photo",
            type="pil",
            sources=None,
            transforms=None,
            layers=False,
            brush=gr.Brush(colors=[BRUSH], color_mode="fixed"),
            buttons=[],
            elem_id="canvas",
        )
        with gr.Row():
            another = gr.Button("Another photo", size="sm", min_width=120)
            mask_file = gr.UploadButton(
                "Mask from a file", size="sm", min_width=120, file_types=["image"], elem_id="mask"
            )
    return PhotoArea(drop, drawing, canvas, another, mask_file)


def build_reference_and_settings() -> tuple[gr.Image, SettingsArea]:
    with gr.Row(equal_height=False):
        reference = gr.Image(label="Reference", sources=SOURCES, height=250, min_width=220, elem_id="reference")
        with gr.Column(min_width=220):
            scale = gr.Slider(0, 15, 5, step=0.5, label="Scale (larger: more like the reference)")
            steps = gr.Slider(5, 100, 50, step=1, label="Steps")
            n_samples = gr.Slider(1, 4, 1, step=1, label="Pictures")
    with gr.Accordion("More settings", open=False), gr.Row():
        sampler = gr.Dropdown(list(SAMPLERS), value="plms", label="Sampler", min_width=120)
        strength = gr.Slider(0, 1, 1, step=0.05, label="Strength (less: keeps the layout)", min_width=160)
        seed = gr.Textbox(label="Seed", placeholder="random", min_width=120)
    return reference, SettingsArea(scale, steps, n_samples, sampler, strength, seed)


def build_result() -> ResultArea:
    welcome = "Add a photo and a reference, or choose an example; then press Paint."
    status = gr.HTML(status_line(welcome), elem_id="status")
    preview = gr.Image(label="Preview", visible=False, interactive=False, buttons=[], elem_id="sketch")
    compare = gr.ImageSlider(label="Before and after", visible=False, max_height=560, elem_id="compare")
    gallery = _gallery(label="Pictures: choose one", visible=False, elem_id="pictures")
    download = gr.DownloadButton("Download (PNG, full size)", visible=False, variant="primary", elem_id="download")
    settings = gr.JSON(label="Settings (also stored in the PNG)", visible=False)
    return ResultArea(status, preview, compare, gallery, download, settings)


def build_examples(examples: Sequence[Example]) -> gr.Gallery:
    gr.Markdown("### Examples")
    pictures = [thumbnail(example) for example in examples]
    return _gallery(pictures, show_label=False, interactive=False, elem_id="examples")


def _gallery(*args: object, **options: object) -> gr.Gallery:
    return gr.Gallery(
        *args, columns=4, height="auto", allow_preview=False, buttons=[], elem_classes="gallery", **options
    )


def status_line(message: str, progress: Progress | None = None) -> str:
    """HTML for eyes and screen readers, with a bar if there is progress to show."""
    bar = f'<progress value="{progress.step}" max="{progress.total}"></progress>' if progress else ""
    return f'<div class="line" role="status"><span>{html.escape(message)}</span>{bar}</div>'
