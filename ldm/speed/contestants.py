"""What is compared: this implementation, with and without the fast networks, and diffusers' pipeline."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.load import add_position_ids
from ldm.checkpoint.to_diffusers import DiffusersFiles, to_diffusers
from ldm.editing.inputs import Inputs
from ldm.models.diffusion.conditioning import inpaint_channels, reference_token, unconditional_token
from ldm.models.diffusion.denoiser import guided_eps
from ldm.pipeline import PaintByExample

if TYPE_CHECKING:
    from diffusers import PaintByExamplePipeline

    from ldm.models.diffusion.ddpm import LatentDiffusion

SCALE, STEPS, T = 5.0, 50, 501  # guidance scale, steps of an edit, and the timestep that is measured
EVALUATIONS = STEPS + 1  # PLMS evaluates its first step twice, as diffusers' PNDM does
RECTANGLE = "guided step, rectangle"  # only around the region, as in every other step of --preset fast
PARTS = {  # part -> how often an edit runs it
    "reference": 1,
    "VAE encode": 1,
    "guided step": EVALUATIONS,
    RECTANGLE: 0,
    "VAE decode": 1,
}
Parts = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Pictures:
    """The inputs of edits, pictures of one size; masks are 255 where to paint."""

    images: list[Image.Image]
    masks: list[Image.Image]
    references: list[Image.Image]

    @classmethod
    def random(cls, size: int, batch: int = 1) -> Pictures:
        """Smooth pictures of size x size pixels, and masks that cover a fifth of them, for `batch` edits."""
        rng = np.random.default_rng(0)

        def smooth(count: int) -> list[Image.Image]:
            small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
            return [Image.fromarray(s).resize((size, size), Image.Resampling.BICUBIC) for s in small]

        mask = Image.new("L", (size, size))
        first, side = round(0.34 * size), round(0.2**0.5 * size)
        mask.paste(255, (first, first, first + side, first + side))
        return cls(smooth(batch), [mask] * batch, smooth(batch))


class Contestant(Protocol):
    """An implementation that is measured."""

    name: str

    def parts(self, inputs: Inputs, x: Tensor, z: Tensor) -> Parts:
        """A function for each of PARTS that the contestant can run.

        x, z (B,4,h,w): the noisy latent of the guided step, and the latent to decode."""

    def edit(self, pictures: Pictures, preset: str | None = None) -> list[Image.Image]:
        """The complete call, pictures to pictures. preset: for Ours only."""


class Ours:
    """This implementation. precision, fast, compiled: of PaintByExample."""

    def __init__(self, model: LatentDiffusion, precision: str, fast: bool = True, compiled: bool = False):
        words = [precision, *(["compiled"] if compiled else []), *([] if fast else ["plain"])]
        self.name = f"ours, {', '.join(words)}"
        self.pipeline = PaintByExample(model, precision, fast, compiled)

    @torch.no_grad()
    def parts(self, inputs: Inputs, x: Tensor, z: Tensor) -> Parts:
        networks, device = self.pipeline.networks, self.pipeline.device
        image, reference = inputs.inpaint_image.to(device), inputs.reference.to(device)
        inpaint = inpaint_channels(networks, image, inputs.mask.to(device), torch.zeros_like(x))
        context, uncond = reference_token(networks, reference), unconditional_token(networks, len(x))
        eps = guided_eps(networks.denoiser, inpaint, context, uncond, SCALE)
        parts: Parts = {}
        if networks.rectangle(inpaint[:, -1:], sys.maxsize):
            only_once = functools.partial(networks.denoiser, refresh=sys.maxsize)
            region_eps = guided_eps(only_once, inpaint, context, uncond, SCALE)
            region_eps(x, T)  # computes the whole latent; every later call computes the rectangle
            parts[RECTANGLE] = lambda: region_eps(x, T)
        return parts | {
            "reference": lambda: reference_token(networks, reference),
            "VAE encode": lambda: networks.encode_first_stage(image).mean,
            "guided step": lambda: eps(x, T),
            "VAE decode": lambda: networks.decode_first_stage(z),
        }

    def edit(self, pictures: Pictures, preset: str | None = None) -> list[Image.Image]:
        width, height = pictures.images[0].size
        return self.pipeline(
            pictures.images,
            pictures.masks,
            pictures.references,
            scale=SCALE,
            preset=preset,
            height=height,
            width=width,
            context="photo",
            batch_size=len(pictures.images),
            progress=False,
        )


class Diffusers:
    """diffusers' PaintByExamplePipeline with the model's weights, through our converter."""

    def __init__(self, model: LatentDiffusion, precision: str, compiled: bool = False):
        self.name = f"diffusers, {precision}{', compiled' if compiled else ''}"
        self.dtype = {"full": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        files = to_diffusers(add_position_ids(dict(model.state_dict())), model)
        self.pipeline = _diffusers_pipeline(files, model.device, self.dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        if compiled:
            self.pipeline.unet.to(memory_format=torch.channels_last)
            self.pipeline.unet.compile(mode="reduce-overhead", dynamic=False)
            self.pipeline.vae.decoder.compile(mode="reduce-overhead", dynamic=False)
            self.pipeline.vae.encoder.compile(mode="reduce-overhead", dynamic=False)

    @torch.no_grad()
    def parts(self, inputs: Inputs, x: Tensor, z: Tensor) -> Parts:
        pipe, device = self.pipeline, self.pipeline.device
        image, reference = (t.to(device, self.dtype) for t in (inputs.inpaint_image, inputs.reference))
        factor = pipe.vae.config.scaling_factor
        keep = nn.functional.interpolate(inputs.mask.to(device), x.shape[-2:], mode="bilinear")
        latent = pipe.vae.encode(image).latent_dist.mean.float() * factor
        inpaint = torch.cat([latent, keep], dim=1).repeat(2, 1, 1, 1)
        context, v = pipe.image_encoder(reference, return_uncond_vector=True)
        contexts = torch.cat([v.repeat(len(x), 1, 1), context]).to(self.dtype)
        t = torch.tensor(T, device=device)

        def step() -> Tensor:
            both = torch.cat([x.repeat(2, 1, 1, 1), inpaint], dim=1).to(self.dtype)
            e_uncond, e_cond = pipe.unet(both, t, contexts, return_dict=False)[0].float().chunk(2)
            return e_uncond + SCALE * (e_cond - e_uncond)

        return {
            "reference": lambda: pipe.image_encoder(reference).float(),
            "VAE encode": lambda: pipe.vae.encode(image).latent_dist.mean.float(),
            "guided step": step,
            "VAE decode": lambda: pipe.vae.decode(z.to(self.dtype) / factor).sample.float(),
        }

    def edit(self, pictures: Pictures, preset: str | None = None) -> list[Image.Image]:
        assert preset is None, "diffusers has no presets"
        return self.pipeline(
            example_image=list(pictures.references),
            image=list(pictures.images),
            mask_image=list(pictures.masks),
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
        ).images


def _diffusers_pipeline(files: DiffusersFiles, device: torch.device, dtype: torch.dtype) -> PaintByExamplePipeline:
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    def load(network: nn.Module, file: str) -> nn.Module:
        own, weights = network.state_dict(), files.weights[file]
        # transformers 5 leaves `vision_model.` out of CLIP's names; from_pretrained would rename them
        weights = {n if n in own else n.replace(".vision_model.", "."): t for n, t in weights.items()}
        network.load_state_dict(weights, assign=True)
        return network.to(device, dtype).eval().requires_grad_(False)

    configs = files.configs
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(configs["unet/config.json"])
        vae = diffusers.AutoencoderKL.from_config(configs["vae/config.json"])
    pipeline_class = diffusers.PaintByExamplePipeline
    encoder_class = sys.modules[pipeline_class.__module__].PaintByExampleImageEncoder  # wherever diffusers has moved it
    clip = configs["image_encoder/config.json"]
    encoder = encoder_class(CLIPVisionConfig(**clip), proj_size=clip["projection_dim"])
    return pipeline_class(
        load(vae, "vae/diffusion_pytorch_model.safetensors"),
        load(encoder, "image_encoder/model.safetensors"),
        load(unet, "unet/diffusion_pytorch_model.safetensors"),
        diffusers.PNDMScheduler.from_config(configs["scheduler/scheduler_config.json"]),
        None,
        CLIPImageProcessor(**configs["feature_extractor/preprocessor_config.json"]),
        requires_safety_checker=False,
    )
