"""Ask the model which of several references is in a region of a photo (diffusion classifier, Li et al. 2023).

    paint-by-example which-reference photo.jpg mask.png references/*.jpg

Prints the references from the likeliest to the least likely: the error with which the model predicts noise on the
region under each one's token, how far that is behind the best one's on the same draws of noise with its standard error,
and the number of draws. The half with the larger errors is dropped again and again, so lower ranks have fewer draws.
Writes a picture of it. scripts/which_reference.py is the same command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser
from ldm.cli.flags import add_model, check_range, context, loading_from
from ldm.util import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.methods.classifier import Ranked

SHOWN = 11  # references in the picture, the best


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("photo", help="of any size and kind")
    p.add_argument("mask", help="white (255) where the object is; of the photo's proportions")
    p.add_argument("references", nargs="+", help="pictures of objects, two or more")
    p.add_argument("--draws", type=int, default=64, help="of noise, for the best references (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    p.add_argument("--context", type=context, help="as for edits (default: chosen by the mask)")
    p.add_argument("--output", type=Path, default="results/which_reference.png", help="the picture (%(default)s)")
    add_model(p)
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "draws", 2, 10_000)
    if len(opt.references) < 2:
        raise UserError("one reference has nothing to be compared with: give two or more")

    from ldm.editing.marked import MarkedPhoto
    from ldm.editing.options import Placement, check_seed
    from ldm.editing.regions import Region
    from ldm.images import open_picture
    from ldm.methods.classifier import which_reference
    from ldm.pipeline import PaintByExample

    check_seed(opt.seed)
    placement = Placement(context=opt.context)
    pictures = [open_picture(path, "reference") for path in opt.references]
    marked = MarkedPhoto.mark(open_picture(opt.photo, "image"), [Region(mask=opt.mask)], [tuple(pictures)], placement)
    edit = PaintByExample.from_loading(loading_from(opt))
    plan = edit.plan(marked.photo, marked.masks[0], marked.references[0], placement)
    seen = (plan.inputs.image, plan.inputs.mask, plan.inputs.reference)
    with edit.networks.unet_on_device():
        ranking = which_reference(
            edit.networks, edit.model.schedule, *(each.to(edit.device) for each in seen), opt.draws, opt.seed
        )
    print(table(ranking, opt.references))
    write_picture(plan.place.picture, plan.place.region, pictures, opt.references, ranking, opt.output)


def table(ranking: Sequence[Ranked], names: Sequence[str]) -> str:
    """In Markdown."""
    lines = ["| | reference | error | behind the best | draws |", "|---|---|---|---|---|"]
    for place, each in enumerate(ranking, 1):
        behind = f"{each.behind:.5f} ± {each.standard_error:.5f}" if place > 1 else ""
        lines.append(f"| {place} | {names[each.candidate]} | {each.error:.5f} | {behind} | {each.draws} |")
    return "\n".join(lines)


def write_picture(
    window: Image.Image,
    region: Image.Image,
    references: Sequence[Image.Image],
    names: Sequence[str],
    ranking: Sequence[Ranked],
    path: Path,
) -> None:
    """The window with its region, and the best references in their order."""
    from PIL import Image, ImageFilter

    from ldm.cli.show_samples import titled
    from ldm.files import replacing
    from ldm.images import grid, upright_rgb

    edge = region.filter(ImageFilter.FIND_EDGES)
    tiles = [titled(Image.composite(Image.new("RGB", window.size, "red"), window, edge), "which of these is it?")]
    for place, each in enumerate(ranking[:SHOWN], 1):
        behind = f" +{each.behind:.4f}" if place > 1 else ""
        title = f"{place}. {Path(names[each.candidate]).name}{behind}"
        tiles.append(titled(upright_rgb(references[each.candidate]), title))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        grid(tiles, rows=-(-len(tiles) // 4)).save(temporary, format="PNG")
    print(f"wrote {path}")
