"""Previews while an edit samples: a linear map from a latent to colours, in place of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.conventions import image_to_tensor, tensor_to_image
from ldm.images import grid, upright_rgb
from ldm.models.diffusion.conditioning import encode_to_latent
from ldm.pipeline import PaintByExample


@torch.no_grad()
def fit_preview(edit: PaintByExample, photos: Sequence[Image.Image]) -> Tensor:
    """Weights (5,3) of the linear map from a latent's 4 channels and a constant 1 to RGB in [-1,1] that fits these
    photos best (least squares): the colours that the model's decoder gives, without its detail and at no cost."""
    latents, colours = [], []
    for photo in photos:
        picture = upright_rgb(photo)
        pixels = image_to_tensor(picture.resize(edit.size_for(picture)[::-1]))[None].to(edit.device)
        shape = [side // edit.model.first_stage_model.factor for side in pixels.shape[-2:]]
        z = encode_to_latent(edit.networks, pixels, torch.zeros(1, edit.model.channels, *shape, device=edit.device))
        latents.append(F.pad(z[0].flatten(1), (0, 0, 0, 1), value=1.0).T)
        colours.append(F.interpolate(pixels, z.shape[-2:], mode="area")[0].flatten(1).T)
    return torch.linalg.lstsq(torch.cat(latents).float().cpu(), torch.cat(colours).float().cpu()).solution


def preview_picture(weights: Tensor, latents: Tensor, side: int = 384) -> Image.Image:
    """pred_x0 (B,4,h,w) -> B small pictures in rows of two. weights: of fit_preview; side: longer side of each picture,
    pixels."""
    z = F.pad(latents.float().cpu(), (0, 0, 0, 0, 0, 1), value=1.0)
    pictures = [tensor_to_image(torch.einsum("chw,cr->rhw", latent, weights)) for latent in z]
    zoom = side / max(pictures[0].size)
    width, height = (round(zoom * length) for length in pictures[0].size)
    small = [picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
    return grid(small, rows=-(-len(small) // 2))
