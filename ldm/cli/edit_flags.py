"""What inference.py is told: flags, or the settings inside a picture that it wrote; and back to such settings."""

from __future__ import annotations

import argparse
import re
from typing import Any

from PIL import Image

from ldm.cli.flags import add_editing, add_model, add_sampling, sampling_of
from ldm.editing.metadata import read_settings
from ldm.editing.regions import checked_region, parse_box, parse_point
from ldm.images import open_picture
from ldm.util import UserError

NAMES = {  # of flags -> of settings, where they differ
    "image_path": "image",
    "ddim_steps": "steps",
    "ddim_eta": "eta",
    "H": "height",
    "W": "width",
}
OF_PRESET = ("interval", "refresh")  # of a picture's settings; there are no flags for them
REPLACED = (  # flags beside --from -> settings of the picture that they take the place of
    (("preset",), ("sampler", "steps", *OF_PRESET)),
    (("seed", "fixed_code"), ("start",)),
    (("plms",), ("sampler",)),
    (("plms", "sampler", "ddim_steps"), OF_PRESET),  # a preset's, with its sampler and steps
)
KEPT = (  # flags that are settings
    *("image_path", "regions", "references", "reference_masks", "grow", "invert", "H", "W", "context", "background"),
    *("feather", "strength", "reference_fit", "blend_latents", "scale", "sampler", "ddim_steps", *OF_PRESET),
    *("ddim_eta", "seed", "start", "config", "ckpt", "lora", "lora_scale", "precision"),
    *("decoder", "safety_checker", "watermark"),
)


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The flags of inference.py."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p._negative_number_matcher = re.compile(r"-[\d.][\d.,-]*$")  # coordinates that begin below 0 are no flags either
    files = p.add_argument_group("pictures")
    files.add_argument("--image_path", help="the photo; any size and kind")
    files.add_argument("--reference_path", dest="references", action="append", nargs="+", help="a picture of the"
                       " object, or several of the same; transparent around it, if you like")  # fmt: skip
    files.add_argument("--reference_mask_path", dest="reference_masks", action="append", nargs="+",
                       help="white where the object is, one per reference; the rest of it is ignored")  # fmt: skip
    files.add_argument("--from", dest="repeat", help="a picture written earlier: all as it was made, but for what is"
                       " given beside it")  # fmt: skip
    files.add_argument("--outdir", default="results", help="folder for the results (default: results)")
    files.add_argument("--skip_grid", action="store_true", help="write no grid")
    files.add_argument("--skip_save", action="store_true", help="write no single pictures, only the grid")
    files.add_argument("--n_rows", type=int, default=0, help="rows of the grid (default: as many as rows of four need)")

    where = p.add_argument_group("regions, one of these for each")
    one = {"dest": "regions", "action": "append"}
    where.add_argument("--mask_path", type=lambda path: {"mask": path}, **one, help="white (255) where to paint; same"
                       " proportions as the photo")  # fmt: skip
    where.add_argument("--box", type=parse_box, **one, metavar="x0,y0,x1,y1", help="pixels of the photo, as seen")
    where.add_argument("--polygon", type=parse_point, **one, nargs="+", metavar="x,y", help="three or more corners")
    where.add_argument("--alpha", const={"alpha": True}, dest="regions", action="append_const", help="where the photo"
                       " is transparent")  # fmt: skip

    add_editing(p)
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of the first picture; the others count up from it (321)")
    how.add_argument("--n_samples", type=int, default=1, help="pictures made in one batch (1)")
    how.add_argument("--n_iter", type=int, default=1, help="batches (1)")
    how.add_argument("--fixed_code", action="store_true", help="start every batch from the first one's noise")
    how.add_argument("--H", type=int, help="height at which the model paints the window, pixels (default: the window's"
                     " shape at the model's size, 512 x 512 for a square one)")  # fmt: skip
    how.add_argument("--W", type=int, help="width, pixels")

    which = add_model(p)
    which.add_argument("--C", type=int, help="latent channels; must be the model's (4)")
    which.add_argument("--f", type=int, help="downsampling factor; must be the model's (8)")
    return p


def arguments(argv: list[str], description: str | None = None) -> argparse.Namespace:
    """What is given; what is not, from the picture of --from; what is in neither, the defaults. `start`, where there is
    one: the seed of the first picture's x_T, which is not its own."""
    p = parser(description)
    opt = p.parse_args(argv)
    if opt.repeat:
        bare = parser()
        for action in bare._actions:
            action.default = argparse.SUPPRESS
        given = vars(bare.parse_args(argv))
        kept = read_settings(opt.repeat)
        gone = {name for flags, names in REPLACED if given.keys() & set(flags) for name in names}
        kept = {name: value for name, value in kept.items() if name not in gone}
        found = {flag: kept[name] for flag in KEPT if (name := NAMES.get(flag, flag)) in kept}
        try:
            found = {flag: checked(value, flag, p) for flag, value in found.items()}
        except (TypeError, ValueError) as error:
            raise UserError(f"picture {opt.repeat}: has settings that are none ({error}); name another") from error
        opt = argparse.Namespace(**vars(opt) | found | given)
    if opt.fixed_code:
        opt.start = opt.seed
    needed = (("image_path", "--image_path"), ("regions", "--mask_path"), ("references", "--reference_path"))
    if missing := [flag for name, flag in needed if not getattr(opt, name)]:
        p.error(f"the following arguments are required: {', '.join(missing)}")
    opt.regions = [{"polygon": each} if isinstance(each, list) else each for each in opt.regions]
    return opt


def checked(value: Any, flag: str, p: argparse.ArgumentParser) -> Any:
    """A setting of a picture, which may be a stranger's, as the flag would have it. Raises ValueError, TypeError,
    UserError."""
    if flag == "regions":
        return [checked_region(region) for region in value]
    if flag in ("references", "reference_masks"):
        if not all(isinstance(path, str) for group in value for path in group):
            raise ValueError(f"{flag} {value!r:.60}")
        return [list(group) for group in value]
    if flag == "interval":
        first, last = (int(t) for t in value)
        return first, last
    if flag in ("start", "refresh"):
        return int(value)
    (action,) = (action for action in p._actions if action.dest == flag)
    if action.type:
        return action.type(str(value))
    if not isinstance(value, bool if action.nargs == 0 else str):
        raise ValueError(f"{flag} {value!r:.60}")
    return value


def sampling_asked(opt: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ldm.pipeline.check_request but the seeds. Raises UserError as sampling_of does."""
    sampling = sampling_of(opt) | {"strength": opt.strength}
    if opt.preset is None:
        sampling |= {name: getattr(opt, name) for name in OF_PRESET if getattr(opt, name, None)}
    return sampling


def settings(opt: argparse.Namespace, sampling: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What pictures are made with, but for the seed."""
    return {NAMES.get(flag, flag): getattr(opt, flag, None) for flag in KEPT if flag != "seed"} | sampling | more


def check_editing(opt: argparse.Namespace, size: tuple[int, int] | None = None) -> None:
    """The flags of add_editing, before gigabytes are read. size: (width, height) of the photo, where there is but one.
    Raises UserError."""
    from ldm.editing.background import check_background  # not before they are needed: what they import takes seconds
    from ldm.editing.references import check_fit
    from ldm.editing.watermark import check_watermark
    from ldm.editing.window import check_context

    check_background(opt.background, opt.feather)
    check_context(opt.context)
    check_fit(opt.reference_fit)
    if opt.watermark:
        check_watermark(size)


def read_references(opt: argparse.Namespace) -> list[tuple[Image.Image, ...]]:
    """For every region its references, cut out of their background where they have a mask. Raises UserError."""
    from ldm.editing.references import cut_out  # not before it is needed: torch takes seconds

    groups = opt.references * len(opt.regions) if len(opt.references) == 1 else opt.references
    if len(groups) != len(opt.regions):
        raise UserError(f"{len(opt.regions)} regions and {len(groups)} references; give one --reference_path for each")
    pictures = [tuple(open_picture(path, "reference") for path in group) for group in groups]
    if not opt.reference_masks:
        return pictures
    masks = opt.reference_masks * len(groups) if len(opt.reference_masks) == 1 else opt.reference_masks
    if [len(group) for group in masks] != [len(group) for group in groups]:
        raise UserError("the references have not as many masks; give one in --reference_mask_path for each")
    return [
        tuple(cut_out(each, open_picture(path, "reference's mask")) for each, path in zip(group, paths, strict=True))
        for group, paths in zip(pictures, masks, strict=True)
    ]
