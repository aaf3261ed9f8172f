"""What stands on the page and where; what happens on a click is in ldm.web.events.

Each function builds one part inside the column or row that is open, and returns its components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from ldm.editing.options import BACKGROUNDS, KEEP_LAYOUT, WHOLE_PHOTO
from ldm.editing.references import TOKEN_SUFFIX
from ldm.models.diffusion.presets import DEFAULT, PRESETS
from ldm.models.diffusion.sampling import SAMPLERS
from ldm.models.diffusion.stability import LARGEST_SCALE
from ldm.web.canvas import BRUSH, thumbnail
from ldm.web.examples import Example
from ldm.web.picking import PickArea, build_picking
from ldm.web.request import AUTOMATIC, OWN, PUBLISHED
from ldm.web.several import SeveralArea, build_several
from ldm.web.status import status_line

SOURCES = ["upload", "clipboard"]
WELCOME = "Add a photo and a reference, or choose an example; then press Paint."
CONTEXTS = [AUTOMATIC, "1.5", "2", "3", "5", WHOLE_PHOTO]


@dataclass(frozen=True)
class PhotoArea:
    """The place where a photo is dropped and, hidden until there is one, the canvas with its buttons."""

    drop: gr.Image
    drawing: gr.Column
    canvas: gr.ImageEditor
    another: gr.Button
    mask_file: gr.UploadButton
    picking: PickArea


@dataclass(frozen=True)
class SettingsArea:
    """Named like the arguments of ldm.web.request.parse_request."""

    preset: gr.Dropdown
    scale: gr.Slider
    n_samples: gr.Slider
    sampler: gr.Dropdown
    steps: gr.Slider
    strength: gr.Slider
    keep_layout: gr.Checkbox
    keep: gr.Slider
    mask_from_difference: gr.Checkbox
    mix: gr.Textbox
    background: gr.Dropdown
    context: gr.Dropdown
    grow: gr.Slider
    feather: gr.Textbox
    best: gr.Slider
    detail_scale: gr.Slider | gr.State
    seed: gr.Textbox


@dataclass(frozen=True)
class ResultArea:
    """The preview while an edit samples, after it the result and its settings, and earlier results."""

    preview: gr.Image
    compare: gr.ImageSlider
    gallery: gr.Gallery
    download: gr.DownloadButton
    further: gr.Button
    settings: gr.JSON
    history: gr.Gallery


@dataclass(frozen=True)
class Layout:
    """All components that something happens to."""

    photo: PhotoArea
    reference: gr.Image
    cut_out: gr.Button
    token: gr.UploadButton
    more_references: gr.File
    several: SeveralArea
    status: gr.HTML
    paint: gr.Button
    stop: gr.Button
    settings: SettingsArea
    result: ResultArea
    examples: gr.Gallery


def build_layout(examples: Sequence[Example], device: str, likeness: float | None = None) -> Layout:
    """The page in two columns, on a phone one above the other: what goes in, what comes out. device: the kind that the
    model runs on, which decides about the preset; likeness: how much of a detail path is added at first, None: there is
    none."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            photo = build_photo()
            reference, cut_out, token, more_references, several, settings = build_reference_and_settings(
                device, likeness
            )
            with gr.Column(elem_id="actions"):  # stays at the bottom of the screen
                status = gr.HTML(status_line(WELCOME), elem_id="status")
                with gr.Row():
                    paint = gr.Button("Paint", variant="primary", scale=3, min_width=180)
                    stop = gr.Button("Stop", scale=1, min_width=90)
        with gr.Column(min_width=320):
            result = build_result()
            gallery = build_examples(examples)
    given = (photo, reference, cut_out, token, more_references, several)
    return Layout(*given, status, paint, stop, settings, result, gallery)


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
        picking = build_picking()
    return PhotoArea(drop, drawing, canvas, another, mask_file, picking)


def build_reference_and_settings(
    device: str,
    likeness: float | None = None,
) -> tuple[gr.Image, gr.Button, gr.UploadButton, gr.File, SeveralArea, SettingsArea]:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=220):
            reference = gr.Image(label="Reference", sources=SOURCES, height=250, min_width=220, elem_id="reference")
            with gr.Row():
                cut_out = gr.Button("Cut out the object", size="sm", min_width=100, elem_id="cut-out")
                token = gr.UploadButton(
                    "Learned token", size="sm", min_width=100, file_types=[TOKEN_SUFFIX], elem_id="token"
                )
        with gr.Column(min_width=220):
            preset = gr.Dropdown(preset_choices(), value=default_preset(device), label="Speed", elem_id="speed")
            scale = gr.Slider(0, LARGEST_SCALE, 5, step=0.5, label="Scale (larger: more like the reference)")
            n_samples = gr.Slider(1, 4, 1, step=1, label="Pictures")
            detail_scale = gr.State(None)
            if likeness is not None:
                detail_scale = gr.Slider(0, 1, likeness, step=0.05, label="Likeness")
    with gr.Accordion("More pictures of the same object", open=False, elem_id="more-references"):
        kinds = ["image", TOKEN_SUFFIX]
        more = gr.File(label="They are averaged", file_count="multiple", file_types=kinds, height=140)
        mix = gr.Textbox(
            label="Or mix them (of two, 0: the first, 1: the second)", placeholder="their mean", min_width=120
        )
    several = build_several()
    with gr.Accordion("More settings", open=False, elem_id="more-settings"):
        with gr.Row():
            strength = gr.Slider(0, 1, 1, step=0.05, label="Strength (less: keeps the layout)", min_width=160)
            grow = gr.Slider(-20, 100, 0, step=1, label="Grow the region (pixels)", min_width=160)
        with gr.Row():
            keep_layout = gr.Checkbox(label="Keep the layout", min_width=120, elem_id="keep-layout")
            keep = gr.Slider(0, 1, KEEP_LAYOUT["pnp"], step=0.05, label="How much of it", min_width=160, visible=False)
            outline = gr.Checkbox(label="Find the outline in a rough region", min_width=160, elem_id="outline")
        with gr.Row():
            feather = gr.Textbox(label="Soft edge (pixels)", placeholder="by the window", min_width=120)
            background = gr.Dropdown(list(BACKGROUNDS), value="exact", label="Background", min_width=120)
            context = gr.Dropdown(CONTEXTS, value=AUTOMATIC, label="Window (lengths of the region)", min_width=160)
            best = gr.Slider(1, 8, 1, step=1, label="Best of (seeds tried for each picture)", min_width=160)
            seed = gr.Textbox(label="Seed", placeholder="random", min_width=120)
        with gr.Row():
            sampler = gr.Dropdown(list(SAMPLERS), value="plms", label="Sampler", min_width=120, visible=False)
            steps = gr.Slider(5, 100, 50, step=1, label="Steps", min_width=160, visible=False)
    first = (preset, scale, n_samples, sampler, steps, strength, keep_layout, keep, outline, mix)
    settings = SettingsArea(*first, background, context, grow, feather, best, detail_scale, seed)
    return reference, cut_out, token, more, several, settings


def default_preset(device: str) -> str:
    """50 steps take minutes without an NVIDIA GPU."""
    return PUBLISHED if device == "cuda" else "fast"


def preset_choices(step_seconds: float | None = None) -> list[tuple[str, str]]:
    """(label, value) of the presets, with the time of a picture if it is known how long a step takes."""

    def label(name: str, steps: int) -> str:
        return f"{name}: {steps} steps" + (f", {about(steps * step_seconds)}" if step_seconds else "")

    named = [(label(name, preset.steps), name) for name, preset in PRESETS.items()]
    return [*named, (label("as published", DEFAULT.steps), PUBLISHED), ("own steps and sampler", OWN)]


def about(seconds: float) -> str:
    """A time as people say it."""
    return f"about {max(1, round(seconds))} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def build_result() -> ResultArea:
    preview = gr.Image(label="Preview", visible=False, interactive=False, buttons=[], elem_id="sketch")
    compare = gr.ImageSlider(label="Before and after", visible=False, max_height=560, elem_id="compare")
    gallery = _gallery(label="Pictures: choose one", visible=False, elem_id="pictures")
    with gr.Row():
        download = gr.DownloadButton(
            "Download (PNG, full size)", visible=False, variant="primary", min_width=180, elem_id="download"
        )
        further = gr.Button("Edit this result further", visible=False, min_width=180, elem_id="further")
    with gr.Accordion("Settings (also stored in the PNG)", open=False):
        gr.Markdown("After an edit, its settings are here.")
        settings = gr.JSON(show_label=False, visible=False)
    with gr.Accordion("History of this visit", open=False, elem_id="history"):
        gr.Markdown("After an edit, its pictures are here, the latest first: choose one to see it again.")
        history = _gallery(show_label=False, interactive=False, visible=False)
    return ResultArea(preview, compare, gallery, download, further, settings, history)


def build_examples(examples: Sequence[Example]) -> gr.Gallery:
    gr.Markdown("### Examples")
    pictures = [thumbnail(example) for example in examples]
    return _gallery(pictures, show_label=False, interactive=False, elem_id="examples")


def _gallery(*args: object, **options: object) -> gr.Gallery:
    return gr.Gallery(
        *args, columns=4, height="auto", allow_preview=False, buttons=[], elem_classes="gallery", **options
    )
