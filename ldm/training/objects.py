"""From pictures of one object to what a token or an adapter is learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.data.masks import reference_region
from ldm.editing.inputs import Condition, Inputs
from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import Placement, Sampling
from ldm.editing.painter import Painter
from ldm.editing.references import NEUTRAL, fit_reference
from ldm.editing.regions import Region
from ldm.images import upright_alpha, upright_rgb
from ldm.models.diffusion.conditioning import encode_to_latent, inpaint_channels, reference_token
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.methods.learn_weights import Examples
    from ldm.methods.tokens import LearnedToken

CONTEXTS = (None, 1.4, 2.2)  # of the windows in which an object is seen
SHOWN = 224  # longest side of the picture in a token's file, pixels


@dataclass(frozen=True)
class ObjectPictures:
    """views (N,9,h,w): of ldm.methods.learn_token, in several windows; inputs: an edit of each picture with its own
    object; pictures: the object, cut out of each; marked: the pictures with their regions."""

    views: Tensor
    inputs: tuple[Inputs, ...]
    pictures: tuple[Image.Image, ...]
    marked: tuple[MarkedPhoto, ...]

    def start(self, edit: Painter, learned_from: str = "") -> LearnedToken:
        """The mean of the pictures' own tokens."""
        from ldm.methods.tokens import LearnedToken

        token = self.tokens(edit).mean(dim=0).cpu()
        picture = self.pictures[0].copy()
        picture.thumbnail((SHOWN, SHOWN))
        shown, zeros = torch.from_numpy(np.array(picture)), torch.zeros_like(token)
        v = edit.model.learnable_vector.detach().flatten().cpu()
        return LearnedToken(token, shown, zeros, zeros, learned_from=learned_from, v=v)

    @torch.no_grad()
    def tokens(self, edit: Painter) -> Tensor:
        """The pictures' own tokens (pictures,M,D)."""
        crops = torch.cat([each.reference for each in self.inputs])
        return reference_token(edit.networks, crops.to(edit.device))

    def examples(self, edit: Painter) -> Examples:
        """The views, each with the token of its own picture."""
        from ldm.methods.learn_weights import Examples

        return Examples(self.views, self.tokens(edit).repeat_interleave(len(CONTEXTS), dim=0))

    @torch.no_grad()
    def prior(self, edit: Painter, others: Sequence[Image.Image], seed: int, sampling: Sampling) -> Examples:
        """What the model paints in the place of the object from references of other things, with those references'
        tokens: the samples of its own that keep what it knows (Ruiz et al. 2023, section 3.2)."""
        from ldm.methods.learn_weights import Examples

        views, tokens, side = [], [], edit.native_size
        for i, other in enumerate(others):
            marked = self.marked[i % len(self.marked)]
            place = Placement(height=side, width=side)
            inputs = edit.plan(
                marked.photo, marked.masks[0], [fit_reference(upright_rgb(other, NEUTRAL))], place
            ).inputs
            painted = edit.sample(inputs, [seed + i], sampling, progress=False)
            views.append(_view(edit, inputs, painted))
            tokens.append(reference_token(edit.networks, inputs.reference.to(edit.device)))
        return Examples(torch.cat(views), torch.cat(tokens))

    def paint(self, edit: Painter, seed: int, sampling: Sampling, learned: LearnedToken | None = None) -> Tensor:
        """The first picture, its object painted anew from a token or from its own -> (1,3,H,W), about [-1,1]."""
        inputs = replace(self.inputs[0], conditions=(Condition((None if learned is None else learned.token,)),))
        return edit.sample(inputs, [seed], sampling, progress=False)


@torch.no_grad()
def look_at(edit: Painter, images: Sequence[Image.Image], regions: Sequence[Region] | None) -> ObjectPictures:
    """images: pictures of one object, as opened; regions: where it is in each; None: their opaque parts.

    Raises UserError: a picture in which nothing says where the object is, a region that is not in its picture."""
    if regions and len(regions) != len(images):
        raise UserError(f"there are {len(images)} pictures and {len(regions)} regions: give one for each picture")
    side, views, inputs, pictures, kept = edit.native_size, [], [], [], []
    for i, image in enumerate(images):
        photo, region = (image, regions[i]) if regions else _cut_out_object(image)
        marked = MarkedPhoto.mark(photo, [region], [photo])
        mask, own = marked.masks[0], upright_rgb(photo)
        box = mask.point([0] * 128 + [255] * 128).getbbox()
        assert box is not None  # a region has white in it
        crop = fit_reference(own.crop(reference_region(box, own.size)))
        pictures.append(crop)
        kept.append(marked)
        for context in CONTEXTS:
            plan = edit.plan(marked.photo, mask, [crop], Placement(context, height=side, width=side))
            views.append(_view(edit, plan.inputs, plan.inputs.image))
            inputs += [plan.inputs] if context is None else []
    return ObjectPictures(torch.cat(views), tuple(inputs), tuple(pictures), tuple(kept))


def _view(edit: Painter, inputs: Inputs, image: Tensor) -> Tensor:
    """image (1,3,H,W) in [-1,1], of an edit -> (1,9,h,w): its latent, the posterior's mean ++ what the UNet sees of the
    edit besides."""
    zeros = torch.zeros(1, *edit.model.latent_shape(image), device=edit.device)
    x_0 = encode_to_latent(edit.networks, image.to(edit.device), zeros)
    inpaint = inpaint_channels(edit.networks, inputs.inpaint_image.to(edit.device), inputs.mask.to(edit.device), zeros)
    return torch.cat([x_0, inpaint], dim=1)


def _cut_out_object(image: Image.Image) -> tuple[Image.Image, Region]:
    """A picture that is transparent around its object -> the object on grey, with room around it, and its region."""
    alpha = upright_alpha(image)
    if alpha is None or np.asarray(alpha).min() > 127:
        name = getattr(image, "filename", "") or "a picture"
        raise UserError(
            f"nothing says where the object is in {name}: give --box, --mask_path or --snap for each picture, or"
            " pictures that are transparent around it"
        )
    room = max(image.size) // 4
    photo = ImageOps.expand(upright_rgb(image, NEUTRAL), room, NEUTRAL)
    return photo, Region(mask=ImageOps.expand(alpha, room, 0))
