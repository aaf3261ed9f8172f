"""Ranges, mask polarity and sizes: the conventions that all other modules rely on.

| thing       | on disk               | inside                                                                    |
|-------------|-----------------------|---------------------------------------------------------------------------|
| image       | any picture           | (3,H,W) float32 in [-1,1], RGB                                            |
| mask        | 255 = paint, 0 = keep | (1,H,W) float32, 1 = keep, 0 = paint                                      |
| reference   | any picture           | (3,S,S) float32, squashed to S x S (224), normalised with CLIP's mean/std |
| latent      |                       | (4,H/f,W/f), the autoencoder's posterior times scale_factor; f = 8        |
| latent mask |                       | (1,H/f,W/f), the mask resized bilinearly *without* antialias              |
| UNet input  |                       | 9 = noisy latent 4 ++ latent of the masked image 4 ++ latent mask 1       |

Tensors are resized bilinearly without antialias, as in the published implementation. Pictures of the wrong size are
resized as pictures, with antialias, before they become tensors.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB, of pixels in [0,1]
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the same

NOISY_LATENT = slice(0, 4)  # the UNet's input channels
MASK = slice(8, 9)  # 1 = keep
INPAINT = slice(4, 9)  # latent of the masked image and mask: what stays fixed during an edit


def pixels_to_tensor(picture: Image.Image | np.ndarray) -> Tensor:
    """PIL RGB or L, or an (H,W,3) or (H,W) array of 0..255 -> (C,H,W) float32 in [0,1]."""
    x = torch.from_numpy(np.array(picture))
    x = x[None] if x.ndim == 2 else x.permute(2, 0, 1)
    return x.to(torch.float32, memory_format=torch.contiguous_format, copy=True).div_(255.0)


def normalise_clip(pixels: Tensor) -> Tensor:
    """(3,H,W) in [0,1] -> (3,H,W), normalised with CLIP's mean and standard deviation."""
    return pixels.sub(torch.tensor(CLIP_MEAN).view(3, 1, 1)).div_(torch.tensor(CLIP_STD).view(3, 1, 1))


def image_to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """PIL RGB, or an (H,W,3) array of 0..255 -> (3,H,W) in [-1,1]."""
    return pixels_to_tensor(image).mul_(2.0).sub_(1.0)


def tensor_to_image(image: Tensor) -> Image.Image:
    """(3,H,W) in [-1,1], other values are clipped -> PIL RGB."""
    array = ((image.detach().float().cpu() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).numpy())


def mask_to_tensor(mask: Image.Image) -> Tensor:
    """PIL L, 255 = paint -> (1,H,W) of 0 and 1, 1 = keep; grey is thresholded at one half."""
    return (1.0 - pixels_to_tensor(mask) >= 0.5).float()


def mask_to_image(mask: Tensor) -> Image.Image:
    """(1,H,W), 1 = keep -> PIL L, 255 = paint."""
    array = ((1.0 - mask.detach().float().cpu()) * 255.0).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(array[0].numpy())


def reference_to_tensor(reference: Image.Image, size: int = 224) -> Tensor:
    """PIL RGB -> (3,size,size), squashed (not centre-cropped, so that the whole object stays), CLIP-normalised."""
    return normalise_clip(pixels_to_tensor(reference.resize((size, size), Image.Resampling.BICUBIC)))


def reference_to_image(reference: Tensor) -> Image.Image:
    """(3,S,S), CLIP-normalised -> PIL RGB: the inverse of reference_to_tensor, except for the size."""
    pixels = reference.cpu() * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    return tensor_to_image(pixels * 2.0 - 1.0)


def reference_in_pixels(reference: Tensor, size: int) -> Tensor:
    """(B,3,S,S), CLIP-normalised -> (B,3,size,size) in [-1,1], resized with antialias."""
    mean, std = (torch.tensor(each, device=reference.device).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    pixels = F.interpolate(reference * std + mean, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return pixels.clamp(0.0, 1.0) * 2.0 - 1.0


def normalise_imagenet(image: Tensor) -> Tensor:
    """(B,3,H,W) in [0,1] -> (B,3,H,W), normalised with ImageNet's mean and standard deviation, as DINOv2 takes it."""
    mean, std = (torch.tensor(each, device=image.device).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def resize_tensor(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B,C,H,W) -> (B,C,h,w), bilinear without antialias; size = (h,w)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=False)
