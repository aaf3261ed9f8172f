"""References: pictures or learned tokens, objects cut out of their background, and how a picture becomes a square."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps
from torch import Tensor

from ldm.conventions import CLIP_MEAN
from ldm.editing.pictures import Picture, as_picture
from ldm.images import open_picture, upright_alpha, upright_mask, upright_rgb
from ldm.segmentation.objects import load_segmenter, without_background
from ldm.storage import place
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.methods.tokens import LearnedToken
    from ldm.models.diffusion.ddpm import LatentDiffusion

References = Picture | tuple[Picture, ...]  # one picture of an object, or several; a path may also be a learned token's
TOKEN_SUFFIX = ".safetensors"
TOKEN = "paint-by-example token"  # in a picture's `info`: the LearnedToken that it stands for
RED, GREEN, BLUE = (round(255 * level) for level in CLIP_MEAN)
NEUTRAL = (RED, GREEN, BLUE)  # RGB, which CLIP's normalisation maps to 0
OBJECT_SIDE = 320  # longer side at which an object is found, pixels: a third of the time of 512 with GrabCut


def open_reference(path: str | os.PathLike) -> Image.Image:
    """A picture file; of a learned token (.safetensors) its picture, with the token in `info`. Raises UserError."""
    if place(path).suffix.lower() != TOKEN_SUFFIX:
        return open_picture(path, "reference")
    from ldm.methods.tokens import read_token

    learned = read_token(path)
    picture = Image.fromarray(learned.picture.numpy())
    picture.info[TOKEN] = learned
    picture.filename = os.fspath(path)  # type: ignore[attr-defined]
    return picture


def learned_token(reference: Image.Image, model: LatentDiffusion | None = None) -> Tensor | None:
    """The token (M,D) that a picture stands for, or None. model: which it has to fit. Raises UserError: another's."""
    learned: LearnedToken | str | None = reference.info.get(TOKEN)
    if learned is None or isinstance(learned, str):  # a PNG's text may have any key
        return None
    if model is not None:
        learned.check_model(model, getattr(reference, "filename", ""))
    return learned.token


def as_reference(value: Any) -> Image.Image:
    """As as_picture; a path may also be a learned token's. Raises UserError, TypeError."""
    return open_reference(value) if isinstance(value, str | os.PathLike) else as_picture(value, "reference")


def cut_out(reference: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture and its mask (255 = the object) -> RGBA, transparent around the object.

    Raises UserError as upright_mask does, or if it is a learned token."""
    if learned_token(reference) is not None:
        raise UserError("a learned token has no background to leave out: leave out its mask")
    picture, white = upright_rgb(reference), upright_mask(mask, reference)
    if white.size != picture.size:
        white = white.resize(picture.size, Image.Resampling.BILINEAR)
    picture.putalpha(white)
    return picture


def fit_reference(reference: Image.Image, fit: str = "squash") -> Image.Image:
    """A picture of any size and mode -> RGB, which is then squashed to CLIP's square.

    A transparent picture is cut to its opaque part; around the object it becomes NEUTRAL. fit: "squash" changes
    nothing, as published; "pad" adds NEUTRAL to make a square; "crop" takes the central square.
    Raises UserError if nothing is opaque."""
    picture, alpha = upright_rgb(reference, NEUTRAL), upright_alpha(reference)
    if alpha is not None:
        picture = picture.crop(_opaque_box(alpha))
    return _fitted(picture, fit, NEUTRAL)


def object_in_reference(reference: Image.Image, fit: str = "squash", segment: str | None = None) -> Image.Image:
    """Where fit_reference shows the object: L, 255 = object, of the same size.

    In an opaque picture it is found (segment: see load_segmenter), which takes GrabCut 1 to 3 s in a picture of 512 x
    512 on one core; if none stands out, it is all of the picture. A learned token shows none. Raises UserError: a
    segmenter that cannot be loaded."""
    if learned_token(reference) is not None:
        return Image.new("L", fit_reference(reference, fit).size, 0)
    alpha = upright_alpha(reference)
    if alpha is not None:
        return _fitted(alpha.crop(_opaque_box(alpha)), fit, 0)
    load_segmenter(segment)
    picture = upright_rgb(reference)
    small = picture.copy()
    small.thumbnail((OBJECT_SIDE, OBJECT_SIDE))
    try:
        found = without_background(small, segment).getchannel("A").resize(picture.size)
    except UserError:
        found = Image.new("L", picture.size, 255)
    return _fitted(found, fit, 0)


def _opaque_box(alpha: Image.Image) -> tuple[int, int, int, int]:
    box = alpha.point([0] * 128 + [255] * 128).getbbox()
    if box is None:
        raise UserError("the reference is fully transparent: give one that shows the object")
    return box


def _fitted(picture: Image.Image, fit: str, around: int | tuple[int, int, int]) -> Image.Image:
    """around: the colour that "pad" adds."""
    if fit == "squash":
        return picture
    side = max(picture.size) if fit == "pad" else min(picture.size)
    if fit == "pad":
        return ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color=around)
    assert fit == "crop", fit
    return ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)


def read_references(
    regions: int, references: Sequence[Sequence[str]], masks: Sequence[Sequence[str]] | None = None
) -> list[tuple[Image.Image, ...]]:
    """The references of each region, read from files and cut out where they have a mask.

    regions: their number; references, masks: a list of paths for each region, or one list for all regions.
    Raises UserError: a wrong number of references or masks, a file that cannot be read."""
    groups = list(references) * regions if len(references) == 1 else references
    if len(groups) != regions:
        raise UserError(
            f"there are {regions} regions and {len(groups)} references: give one for each region, or one for all"
        )
    pictures = [tuple(map(open_reference, group)) for group in groups]
    if not masks:
        return pictures
    mask_groups = list(masks) * regions if len(masks) == 1 else masks
    if [len(group) for group in mask_groups] != [len(group) for group in groups]:
        raise UserError("some references have no mask: give one in --reference_mask_path for each, or none at all")
    return [
        tuple(cut_out(each, open_picture(path, "reference's mask")) for each, path in zip(group, paths, strict=True))
        for group, paths in zip(pictures, mask_groups, strict=True)
    ]
