"""What an edit's photo is, for methods that begin with it: its latent, and the region's own crop, which is the source
condition that other models need a caption for."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.conventions import reference_to_tensor, tensor_to_image
from ldm.models.diffusion.conditioning import ConditioningModel, inpaint_channels


def own_reference(image: Tensor, mask: Tensor, size: int) -> Tensor:
    """image (B,3,H,W) in [-1,1], mask (B,1,H,W), 1 = keep -> (B,3,size,size), CLIP-normalised: the smallest rectangle
    around each region, as a reference."""
    crops = []
    for picture, keep in zip(image, mask, strict=True):
        rows, columns = ((keep[0] < 1).any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
        crop = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        crops.append(reference_to_tensor(tensor_to_image(crop), size))
    return torch.stack(crops).to(image.device)


def mean_latents(model: ConditioningModel, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """image (B,3,H,W) in [-1,1], mask (B,1,H,W), 1 = keep -> x_0 of the photo (B,4,h,w) and the inpainting channels
    (B,5,h,w), without the noise of the autoencoder's posteriors."""
    posterior = model.encode_first_stage(image)
    zeros = torch.zeros_like(posterior.mean)
    return model.get_first_stage_encoding(posterior, zeros), inpaint_channels(model, image * mask, mask, zeros)
