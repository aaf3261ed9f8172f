"""The page: a photo to paint on, a reference, numbers; previews and results; and ldm.web.call beside it."""

from __future__ import annotations

import asyncio
import html
from pathlib import Path

import gradio as gr

from ldm.models.diffusion.sampling import SAMPLERS
from ldm.util import UserError
from ldm.web.call import endpoint, job_of, keep, path_of, told
from ldm.web.canvas import BRUSH, canvas_of, painted, thumbnail
from ldm.web.edits import Edits, Job, Progress, Result
from ldm.web.uploads import MAX_FILE, open_upload, within

QUEUE = 32  # edits that wait; who comes then is told to try later
KEPT = 3600  # seconds that uploads and results stay on the server's disk
SHOWN = 1600  # longer side of a result on the page, pixels; what is downloaded has the photo's size
SMALL = 320  # the same where there are several
STYLE = Path(__file__).with_name("page.css")
WORDS = """# Paint by Example
Brush over a part of a photo, give a picture of an object, and it is painted there, in the photo's own light."""


def line(words: str, progress: Progress | None = None) -> str:
    """How it stands, for eyes and screen readers, with a bar where there is something to measure."""
    bar = f'<progress value="{progress.step}" max="{progress.total}"></progress>' if progress else ""
    return f'<div class="line" role="status"><span>{html.escape(words)}</span>{bar}</div>'


def build(edits: Edits, examples: list[tuple[Path, Path, Path]]) -> gr.Blocks:
    """The page for a model. examples: photo, mask, reference of each."""
    with gr.Blocks(title="Paint by Example", analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        photo_path, reference_path, results = gr.State(), gr.State(), gr.State([])
        gr.Markdown(WORDS)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                photo = gr.Image(label="Photo", sources=["upload", "clipboard"], height=400, elem_id="photo")
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
                        other = gr.Button("Another photo", size="sm", min_width=120)
                        mask_file = gr.UploadButton(
                            "Mask from a file", size="sm", min_width=120, file_types=["image"], elem_id="mask"
                        )
                with gr.Row(equal_height=False):
                    reference = gr.Image(
                        label="Reference",
                        sources=["upload", "clipboard"],
                        height=250,
                        min_width=220,
                        elem_id="reference",
                    )
                    with gr.Column(min_width=220):
                        scale = gr.Slider(0, 15, 5, step=0.5, label="Scale (larger: more like the reference)")
                        steps = gr.Slider(5, 100, 50, step=1, label="Steps")
                        n_samples = gr.Slider(1, 4, 1, step=1, label="Pictures")
                with gr.Accordion("More settings", open=False), gr.Row():
                    sampler = gr.Dropdown(list(SAMPLERS), value="plms", label="Sampler", min_width=120)
                    strength = gr.Slider(0, 1, 1, step=0.05, label="Strength (less: keeps the layout)", min_width=160)
                    seed = gr.Textbox(label="Seed", placeholder="by chance", min_width=120)
                with gr.Row():
                    run = gr.Button("Paint", variant="primary", scale=3, min_width=180)
                    stop = gr.Button("Stop", scale=1, min_width=90)
            with gr.Column(min_width=320):
                status = gr.HTML(
                    line("Your own photo and reference, or one of the examples: then press Paint."), elem_id="status"
                )
                sketch = gr.Image(label="On the way", visible=False, interactive=False, buttons=[], elem_id="sketch")
                compare = gr.ImageSlider(label="Before and after", visible=False, max_height=560, elem_id="compare")
                gallery = gr.Gallery(
                    label="Pictures: choose one",
                    visible=False,
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    buttons=[],
                    elem_classes="gallery",
                    elem_id="pictures",
                )
                download = gr.DownloadButton(
                    "Download (PNG, full size)", visible=False, variant="primary", elem_id="download"
                )
                settings = gr.JSON(label="Settings, also in the PNG", visible=False)
                gr.Markdown("### Examples")
                chosen = gr.Gallery(
                    [thumbnail(*files) for files in examples],
                    show_label=False,
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_classes="gallery",
                    elem_id="examples",
                )

        def open_photo(path: str | None, value: dict | None) -> dict:
            """The canvas with this value in the place where photos are dropped; without one, the reverse."""
            return {
                photo_path: path,
                photo: gr.Image(value=None, visible=value is None),
                drawing: gr.Column(elem_classes="away" if value is None else ""),
                canvas: value,
            }

        def take_photo(file):
            try:
                path = path_of(file, "photo")
                return open_photo(path, canvas_of(open_upload(path, "photo")))
            except UserError as error:
                gr.Warning(str(error), duration=None)
                return open_photo(None, None)

        def take_mask(path, image):
            with told():
                return canvas_of(open_upload(image, "photo"), open_upload(path, "mask"))

        def take_reference(file):
            try:
                path = path_of(file, "reference")
                return path, within(open_upload(path, "reference"), 512)
            except UserError as error:
                gr.Warning(str(error), duration=None)
                return None, None

        def take_example(event: gr.SelectData):
            image, mask, ref = examples[event.index]
            value = canvas_of(open_upload(image, "photo"), open_upload(mask, "mask"))
            return {**open_photo(str(image), value), reference_path: str(ref), reference: str(ref)}

        def show(image: str, path: str, values: dict) -> dict:
            pair = within(open_upload(image, "photo"), SHOWN), within(open_upload(path, "picture"), SHOWN)
            return {
                compare: gr.ImageSlider(value=pair, visible=True),
                download: gr.DownloadButton(value=path, visible=True),
                settings: gr.JSON(value=values, visible=True),
            }

        def choose(made, event: gr.SelectData):
            with told():
                return show(*made[event.index])

        def asked(image, drawn, ref, *numbers) -> Job:
            picture = open_upload(image, "photo")
            given = open_upload(ref, "reference")
            return job_of((picture, painted(drawn["layers"] if drawn else [], picture), given), *numbers)

        def finished(image: str, found: list[Result]) -> dict:
            made = [(image, keep(result, image, download), result.settings) for result in found]
            small = [within(result.picture, SMALL) for result in found]
            return {
                status: line("Done."),
                results: made,
                sketch: gr.Image(value=None, visible=False),
                gallery: gr.Gallery(value=small, visible=len(small) > 1, selected_index=0),
                **show(*made[0]),
            }

        async def paint(image, drawn, ref, *numbers):
            with told():
                job = await asyncio.to_thread(asked, image, drawn, ref, *numbers)
                yield {
                    status: line("It begins ..."),
                    **{part: gr.update(visible=False) for part in (compare, gallery, download, settings)},
                }
                async for news in edits.stream(job):
                    if isinstance(news, Progress):
                        words = f"Step {news.step} of {news.total}"
                        yield {status: line(words, news), sketch: gr.Image(value=news.preview, visible=True)}
                    else:
                        yield await asyncio.to_thread(finished, image, news)

        def nothing():
            return line("Nothing was painted."), gr.Image(value=None, visible=False)

        quick = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_id": "quick",
            "concurrency_limit": 4,
        }
        slow = {"concurrency_limit": 1, "concurrency_id": "model"}  # one edit at a time, the page's and the calls'
        place = [photo_path, photo, drawing, canvas]
        parts = [compare, download, settings]
        photo.upload(take_photo, photo, place, preprocess=False, **quick)
        chosen.select(take_example, None, [*place, reference_path, reference], **quick)
        other.click(lambda: open_photo(None, None), None, place, **quick)
        mask_file.upload(take_mask, [mask_file, photo_path], canvas, **quick)
        reference.upload(take_reference, reference, [reference_path, reference], preprocess=False, **quick)
        reference.clear(lambda: None, None, reference_path, **quick)
        gallery.select(choose, results, parts, **quick)
        painting = run.click(
            paint,
            [photo_path, canvas, reference_path, scale, steps, sampler, strength, seed, n_samples],
            [status, sketch, results, gallery, *parts],
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=status,
            scroll_to_output=True,
            **slow,
        )
        stop.click(None, cancels=[painting]).then(nothing, None, [status, sketch], **quick)
        painting.failure(nothing, None, [status, sketch], **quick)
        gr.api(endpoint(edits, download), api_name="edit", **slow)
    return page.queue(max_size=QUEUE)


def serve(page: gr.Blocks, listen: str, port: int) -> str:
    """Starts the server, in threads of its own -> its address. Raises UserError where the address is not to be had."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no fetching of any
    try:
        _, url, _ = page.launch(
            prevent_thread_lock=True,
            server_name=listen,
            server_port=port,
            max_file_size=MAX_FILE,
            quiet=True,
            run_history=False,
            footer_links=["api"],
            theme=gr.themes.Default(**fonts),
            css_paths=STYLE,
        )
    except OSError as error:
        raise UserError(f"--listen {listen} --port {port}: cannot be had ({error}); use another port") from error
    return url
