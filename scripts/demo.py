"""The web page: brush over a part of a photo, give a reference, look at the edits.

python scripts/demo.py
python scripts/demo.py --ckpt checkpoints/model.ckpt --listen 0.0.0.0 --port 7860"""

import argparse
from dataclasses import replace
from pathlib import Path

from ldm.cli.command import command
from ldm.cli.flags import add_model, loading_from
from ldm.fast.memory import share_memory
from ldm.util import UserError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = p.add_argument_group("server")
    where.add_argument("--listen", default="127.0.0.1", help="address: 0.0.0.0 for all the network (%(default)s)")
    where.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    add_model(p)
    return p


@command
def main() -> None:
    opt = parser().parse_args()
    share_memory()
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the page needs Gradio; install it with pip install -e '.[web]'") from error

    from ldm.checkpoint.locate import choose_model
    from ldm.images import open_picture
    from ldm.pipeline import PaintByExample
    from ldm.web.edits import Edits
    from ldm.web.examples import examples_for
    from ldm.web.page import build, serve

    config, ckpt = choose_model(opt.config, opt.ckpt, adapted=opt.lora is not None)
    edit = PaintByExample.from_loading(replace(loading_from(opt), config=config, ckpt=ckpt))
    about = {"precision": edit.precision, "checkpoint": Path(ckpt).name}
    if opt.lora:
        about |= {"lora": Path(opt.lora).name, "lora_scale": opt.lora_scale}
    examples = examples_for(edit)
    photos = [open_picture(image, "example") for image, *_ in examples]
    edits = Edits(edit, about, photos)
    page = build(edits, examples)
    print(f"the page is at {serve(page, opt.listen, opt.port)} until Ctrl-C", flush=True)
    try:
        page.block_thread()
    finally:
        edits.close()


if __name__ == "__main__":
    main()
