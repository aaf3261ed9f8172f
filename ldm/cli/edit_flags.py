"""What `edit` (scripts/inference.py) is asked for: flags, or the settings inside a picture that it wrote earlier."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm.cli.command import command_parser
from ldm.cli.flags import Repeated, add_editing, add_model, add_sampling, sampling_from
from ldm.editing.names import FLAG_NAMES
from ldm.util import UserError

if TYPE_CHECKING:  # importing torch takes seconds, which --help must not
    from ldm.editing.options import Sampling

PRESET_SETTINGS = ("interval", "refresh")  # which have no flags
REPLACED = (  # flags beside --from -> settings of the picture that they replace
    (("strength",), ("keep_layout", "keep")),
    (("keep_layout",), ("strength", "keep")),
    (("references",), ("reference_masks",)),
    (("preset",), ("sampler", "steps", *PRESET_SETTINGS)),
    (("seed", "fixed_code", "best"), ("start",)),
    (("plms",), ("sampler",)),
    (("plms", "sampler", "ddim_steps"), PRESET_SETTINGS),  # those belong to the preset's sampler and steps
)
SETTINGS = (  # flags whose values are written into pictures
    *("image_path", "regions", "references", "reference_masks", "grow", "invert", "H", "W", "context", "background"),
    *("feather", "strength", "keep_layout", "keep", "reference_fit", "reference_cutout", "segment", "blend_latents"),
    *("mask_from_difference", "mix", "together", "windows", "control", "control_image", "control_scale"),
    *("scale", "detail_scale", "sampler", "ddim_steps", *PRESET_SETTINGS),
    *("ddim_eta", "seed", "start", "config", "ckpt", "lora", "lora_scale", "detail", "precision"),
    *("decoder", "safety_checker", "watermark"),
)


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The flags of `edit`."""
    p = command_parser(description)
    p._negative_number_matcher = re.compile(r"-[\d.][\d.,-]*$")  # coordinates below 0 are not flags either
    files = p.add_argument_group("pictures")
    files.add_argument("--image_path", "--image", help="the photo, of any size and kind")
    files.add_argument("--reference_path", "--reference", dest="references", action="append", nargs="+", help="a"
                       " picture of the object, or several of it; may be transparent around it; or a token that"
                       " learn-object wrote")  # fmt: skip
    files.add_argument("--reference_mask_path", dest="reference_masks", action="append", nargs="+",
                       help="white where the object is, one per reference; the rest of it is ignored")  # fmt: skip
    files.add_argument("--control_image", help="edges, depth or what else --control takes, of the photo's proportions")
    files.add_argument("--from", dest="repeat", help="a picture written earlier: make it again, except for the flags"
                       " given beside it")  # fmt: skip
    files.add_argument("--outdir", default="results", help="results go to the folder results in it (default: results"
                       " itself)")  # fmt: skip
    files.add_argument("--no_settings", action="store_true", help="write pictures without the settings that made them")
    files.add_argument("--skip_grid", action="store_true", help="write no grid")
    files.add_argument("--skip_save", action="store_true", help="write no single pictures, only the grid")
    files.add_argument("--n_rows", type=int, default=0, help="rows of the grid (default: rows of four)")

    where = p.add_argument_group("regions, one of these for each")
    where.add_argument("--mask_path", "--mask", type=_mask_region, dest="regions", action="append", help="white (255)"
                       " where to paint; of the photo's proportions")  # fmt: skip
    where.add_argument("--box", type=_box_region, dest="regions", action="append", metavar="x0,y0,x1,y1",
                       help="pixels of the photo, as seen")  # fmt: skip
    where.add_argument("--polygon", type=_corner, dest="regions", action="append", nargs="+", metavar="x,y",
                       help="three or more corners")  # fmt: skip
    where.add_argument("--alpha", const={"alpha": True}, dest="regions", action="append_const", help="where the photo"
                       " is transparent")  # fmt: skip

    an_object: dict[str, Any] = {"action": _Object, "dest": "regions", "const": []}
    where.add_argument("--snap", **an_object, metavar="x0,y0,x1,y1", help="a loose box around an object, whose outline"
                       " is found; clicks after it correct that")  # fmt: skip
    where.add_argument("--click", "--click_not", **an_object, metavar="x,y", help="a point on an object, or beside it,"
                       " as often as needed; after another region or --reference_path, of the next object")  # fmt: skip

    where.add_argument("--together", nargs="*", type=_layer, metavar="SCALE", help="paint several regions at once, in"
                       " one window around them, not one after the other; numbers: guidance of each, 5@0.6: and its"
                       " strength")  # fmt: skip

    add_editing(p)
    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of the first picture; the others count up from it (321)")
    how.add_argument("--n_samples", type=int, default=1, help="pictures made in one batch (1)")
    how.add_argument("--n_iter", type=int, default=1, help="batches (1)")
    how.add_argument("--fixed_code", action="store_true", help="start every batch from the first one's noise")
    how.add_argument("--H", "--height", type=int, help="height at which the model paints the window, pixels (default:"
                     " the window's shape at the model's size, 512 x 512 for a square)")  # fmt: skip
    how.add_argument("--W", "--width", type=int, help="width, pixels")

    which = add_model(p)
    which.add_argument("--C", type=int, help="latent channels; must be the model's (4)")
    which.add_argument("--f", type=int, help="downsampling factor; must be the model's (8)")
    return p


# Regions travel as settings, {"box": [...]}, until the editing modules, which import torch, are needed.


def _mask_region(path: str) -> dict[str, Any]:
    return {"mask": path}


def _box_region(words: str) -> dict[str, Any]:
    from ldm.editing.regions import parse_box

    return parse_box(words).settings


class _Object(argparse.Action):
    """A point or a loose box: belongs to the region before it, if that is an object and no reference has come since, or
    else begins one. const: a list, shared by all such flags, of the number of references before the last of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        kind, before = (option or "").removeprefix("--"), self.const
        regions = list(getattr(namespace, self.dest, None) or [])
        references = len(getattr(namespace, "references", None) or [])
        goes_on = bool(regions) and isinstance(regions[-1], dict) and {"snap", "click", "click_not"} & {*regions[-1]}
        goes_on = goes_on and kind != "snap" and before == [references]
        region = regions.pop() if goes_on else {}
        value = _box_region(values)["box"] if kind == "snap" else [*region.get(kind, []), _corner(values)]
        setattr(namespace, self.dest, [*regions, region | {kind: value}])
        before[:] = [references]


def _corner(words: str) -> list[int]:
    from ldm.editing.regions import parse_point

    return list(parse_point(words))


def _layer(words: str) -> float | list[float]:
    try:
        numbers = [float(word) for word in words.split("@")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{words!r} is neither a scale nor scale@strength: give for instance 5 or 5@0.6"
        ) from error
    return numbers[0] if len(numbers) == 1 else numbers


def parse(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The values of the flags; of those not given, the settings of the picture of --from; of the rest, the defaults.

    regions becomes a list of Region; `start`, if there is one, is the seed of the first picture's x_T, where that is
    not the picture's own seed. Raises UserError: no photo, region or reference; a picture
    without settings, or with settings that make no sense."""
    p = parser(description)
    opt = p.parse_args(argv)
    if opt.repeat:
        opt = argparse.Namespace(**vars(opt) | _values_of_picture(opt.repeat, argv))
    if opt.fixed_code:
        opt.start = opt.seed
    missing = {"--image_path": opt.image_path, "--mask_path": opt.regions, "--reference_path": opt.references}
    if opt.repeat and (needed := [flag for flag, value in missing.items() if not value]):
        raise UserError(
            f"picture {opt.repeat} keeps no file names for {', '.join(needed)}, as pictures made by the page or from"
            f" pictures in memory: give {'it' if len(needed) == 1 else 'them'} beside --from"
        )
    if not opt.image_path:
        raise UserError("no photo is given: name one with --image_path")
    if not opt.regions:
        raise UserError("no region is marked: use --mask_path, --box, --polygon, --alpha, --click or --snap")
    if not opt.references:
        raise UserError("no reference is given: name one with --reference_path")

    from ldm.editing.regions import Region

    settings = [{"polygon": each} if isinstance(each, list) else each for each in opt.regions]
    opt.regions = [Region.from_settings(each) for each in settings]
    return opt


def _values_of_picture(path: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """The values of the flags that made a picture, with those that are given beside it in their place."""
    from ldm.editing.metadata import find_files, read_settings

    p = parser()
    for action in p._actions:
        action.default = argparse.SUPPRESS
    given = vars(p.parse_args(argv))
    replaced = {name for flags, names in REPLACED if given.keys() & set(flags) for name in names}
    settings = {name: value for name, value in read_settings(path).items() if name not in replaced}
    try:
        settings = find_files(path, settings)
        found = {flag: settings[name] for flag in SETTINGS if (name := FLAG_NAMES.get(flag, flag)) in settings}
        found = {flag: _checked(value, flag, p) for flag, value in found.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"picture {path} has settings that make no sense ({error}): use another picture") from error
    return found | given


def _checked(value: Any, flag: str, p: argparse.ArgumentParser) -> Any:
    """A setting of a picture, which may come from a stranger, as the flag's own parsing would return it.

    Raises ValueError, TypeError, UserError."""
    if flag == "regions":
        from ldm.editing.regions import Region

        return [Region.from_settings(region).settings for region in value]
    if flag in ("references", "reference_masks"):
        if not all(isinstance(path, str) for group in value for path in group):
            raise ValueError(f"{flag} {value!r:.60}")
        return [list(group) for group in value]
    if flag == "together":
        return (
            [] if value is True else [list(map(float, own)) if isinstance(own, list) else float(own) for own in value]
        )
    if flag == "interval":
        first, last = (int(t) for t in value)
        return first, last
    if flag in ("start", "refresh"):
        return int(value)
    (action,) = (action for action in p._actions if action.dest == flag)
    if isinstance(action, Repeated) and isinstance(value, list) and value:
        return [_checked(each, flag, p) for each in value]
    if callable(action.type):
        return action.type(str(value))
    if not isinstance(value, bool if action.nargs == 0 else str):
        raise ValueError(f"{flag} {value!r:.60}")
    return value


def edit_sampling_from(opt: argparse.Namespace) -> Sampling:
    """As sampling_from; also the settings of the preset that the picture of --from was made with. Raises UserError."""
    sampling = sampling_from(opt)
    if opt.preset is None:
        kept = {name: getattr(opt, name) for name in PRESET_SETTINGS if getattr(opt, name, None)}
        sampling = replace(sampling, **kept)
    return sampling
