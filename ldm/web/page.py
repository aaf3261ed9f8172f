"""The page and its server: a photo to paint on, a reference, settings; previews and results; and the call /edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from starlette.routing import BaseRoute

from ldm.util import UserError
from ldm.web.call import edit_endpoint
from ldm.web.events import ONE_AT_A_TIME, Events
from ldm.web.examples import Example, paints_small_world
from ldm.web.layout import build_layout
from ldm.web.uploads import MAX_MEGABYTES
from ldm.web.worker import EditWorker

QUEUE_SIZE = 32  # edits that wait; later ones are refused
KEEP_SECONDS = 3600  # how long uploads and results stay on the server's disk
STYLE, STROKES = (Path(__file__).with_name(name) for name in ("page.css", "strokes.js"))
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none to download
INTRODUCTION = """# Paint by Example
Brush over part of a photo and add a picture of an object: it is painted there, in the photo's own light."""
BANNER = """**`{name}` is a miniature model: it paints pictures of {side} x {side} pixels of a small world of shapes, as
in the examples below. In photographs it leaves coloured blurs.** For photographs, start this page with the released
model: `python scripts/demo.py --ckpt hub` downloads it (5 GB, once)."""


def build(worker: EditWorker, examples: Sequence[Example], segment: str | None = None) -> gr.Blocks:
    """The page for a worker's model. segment: what finds objects, see ldm.segmentation.objects."""
    with gr.Blocks(
        title="Paint by Example", analytics_enabled=False, delete_cache=(KEEP_SECONDS // 6, KEEP_SECONDS)
    ) as page:
        gr.Markdown(f"{INTRODUCTION} Model: `{worker.model.checkpoint}`.")
        if paints_small_world(worker.edit):
            gr.Markdown(BANNER.format(name=worker.model.checkpoint, side=worker.edit.native_size), elem_id="banner")
        layout = build_layout(examples, worker.edit.device.type, worker.detail_scale)
        Events(worker, layout, examples, segment).connect(page)
        gr.api(edit_endpoint(worker, layout.result.download), api_name="edit", **ONE_AT_A_TIME)
    return page.queue(max_size=QUEUE_SIZE)


def serve(page: gr.Blocks, listen: str, port: int, routes: Sequence[BaseRoute] = ()) -> str:
    """Starts the server in threads of its own and returns its address. routes: what it answers beside the page. Raises
    UserError where it cannot listen."""
    try:
        _, url, _ = page.launch(
            prevent_thread_lock=True,
            server_name=listen,
            server_port=port,
            app_kwargs={"routes": list(routes)},
            max_file_size=f"{MAX_MEGABYTES}mb",
            quiet=True,
            run_history=False,
            footer_links=["api"],
            theme=gr.themes.Default(**FONTS),
            css_paths=STYLE,
            head=f"<script>{STROKES.read_text()}</script>",
        )
    except OSError as error:
        raise UserError(
            f"--listen {listen} --port {port}: the server cannot start there ({error}): use another port"
        ) from error
    return url
