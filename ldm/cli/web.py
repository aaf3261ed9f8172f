"""The web page: brush over a part of a photo, give a reference, look at the edits.

paint-by-example web
paint-by-example web --ckpt checkpoints/model.ckpt --listen 0.0.0.0 --port 7860"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.cli.flags import add_model, check_range, loading_from
from ldm.fast import memory
from ldm.util import require


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    server = p.add_argument_group("server")
    server.add_argument("--listen", default="127.0.0.1", help="address; 0.0.0.0 for the whole network (%(default)s)")
    server.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    add_model(p)
    server.add_argument("--segment", metavar="FOLDER", help="what finds clicked objects: grabcut, hub to download"
                        " SAM 2, or the folder of a SAM 2 (grabcut)")  # fmt: skip
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "port", 0, 65535)
    require("gradio", "web")
    memory.share_memory()

    from ldm.checkpoint.adapters import alone, in_list
    from ldm.checkpoint.locate import MINI_CKPT, MINI_DETAIL, choose_model
    from ldm.images import open_picture
    from ldm.pipeline import PaintByExample
    from ldm.segmentation.objects import load_segmenter
    from ldm.web.examples import examples_for
    from ldm.web.iopaint import IOPaint
    from ldm.web.page import build, serve
    from ldm.web.worker import EditWorker, ModelInfo

    load_segmenter(opt.segment)  # what is wrong with it is said now
    config, ckpt = choose_model(opt.config, opt.ckpt, opt.lora)
    detail = opt.detail or (MINI_DETAIL if ckpt.resolve() == MINI_CKPT.resolve() else None)
    edit = PaintByExample.from_loading(replace(loading_from(opt), config=config, ckpt=ckpt, detail=detail))
    names = alone([Path(path).name for path in in_list(opt.lora)])
    adapter = {"lora": names, "lora_scale": opt.lora_scale} if opt.lora else {}
    name = Path(detail).name if detail else None
    model = ModelInfo(precision=edit.precision, checkpoint=Path(ckpt).name, **adapter, detail=name)
    examples = examples_for(edit)
    photos = [open_picture(example.image, "example") for example in examples]
    worker = EditWorker(edit, model, photos, detail_scale=1.0 if opt.detail else 0.0)
    worker.measure()
    page = build(worker, examples, opt.segment)
    url = serve(page, opt.listen, opt.port, IOPaint(worker, opt.segment).routes())
    print(f"the page is at {url} until Ctrl-C", flush=True)
    try:
        page.block_thread()
    finally:
        worker.close()
