"""An edit in plain PyTorch, without the pipeline: load, encode, guided sampling, decode.

    python examples/minimal_edit.py photo.png mask.png reference.png result.png

The whole photo goes through the model, as in the published code. The result is the picture of
PaintByExample.load(fast=False)(image, mask, reference, context="photo", background="none")."""

import argparse

import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint import load_model
from ldm.checkpoint.locate import choose_model
from ldm.conventions import image_to_tensor, mask_to_tensor, reference_to_tensor, resize_tensor, tensor_to_image
from ldm.editing.inputs import size_for
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sampling import ddim_timesteps, sample_plms


@torch.no_grad()
def edit(
    model: LatentDiffusion,
    image: Image.Image,
    mask: Image.Image,
    reference: Image.Image,
    scale: float,
    steps: int,
    seed: int,
) -> Image.Image:
    """image (RGB), mask (L, 255 = paint) and reference (RGB) of any size -> the image, repainted."""
    factor = model.first_stage_model.factor  # 8 pixels to a latent pixel
    height, width = size_for(image, model.image_size * factor, model.size_multiple)

    # Pictures to tensors: x_s (1,3,H,W) in [-1,1], keep (1,1,H,W) with 1 = keep, x_r (1,3,224,224) as CLIP wants it
    x_s = image_to_tensor(image.resize((width, height), Image.Resampling.LANCZOS))[None]
    keep = mask_to_tensor(mask.resize((width, height), Image.Resampling.BILINEAR))[None]
    x_r = reference_to_tensor(reference, model.cond_stage_model.image_size)[None]

    # All random numbers: the noise of the masked photo's posterior, and the noise from which sampling starts
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.channels, height // factor, width // factor)
    posterior_noise, x_T = (torch.randn(shape, generator=generator) for _ in range(2))

    # What stays fixed: latent of the masked photo (4) ++ mask (1); the reference as one token c; the learned vector v
    z = model.get_first_stage_encoding(model.encode_first_stage(x_s * keep), posterior_noise)
    inpaint = torch.cat([z, resize_tensor(keep, z.shape[-2:])], dim=1)
    c = model.proj_out(model.get_learned_conditioning(x_r))
    v = model.learnable_vector

    def eps(x: Tensor, t: int) -> Tensor:
        """The predicted noise with classifier-free guidance (Yang et al. 2022, equation 6)."""
        both = model.apply_model(torch.cat([x, inpaint], dim=1), torch.tensor([t]), torch.cat([v, c]))
        e_uncond, e_cond = both.chunk(2)
        return e_uncond + scale * (e_cond - e_uncond)

    x_0 = sample_plms(eps, x_T, model.schedule, ddim_timesteps(steps, model.num_timesteps))
    painted = tensor_to_image(model.decode_first_stage(x_0)[0])
    return painted.resize(image.size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("image", "mask", "reference", "result"):
        parser.add_argument(name)
    parser.add_argument("--scale", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=321)
    args = parser.parse_args()
    photo, region, example = (
        Image.open(path).convert(mode)
        for path, mode in ((args.image, "RGB"), (args.mask, "L"), (args.reference, "RGB"))
    )
    edit(load_model(*choose_model()), photo, region, example, args.scale, args.steps, args.seed).save(args.result)
