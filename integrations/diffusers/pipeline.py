"""Paint by Example (Yang et al. 2022, arXiv 2211.13227) for diffusers: a region of a photo is repainted with the object
of a reference picture.

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    result = pipe(image=photo, mask_image=mask, example_image=reference).images[0]

| symbol | what                                                                                             |
|--------|--------------------------------------------------------------------------------------------------|
| c      | the reference as one token: linear(LayerNorm(mapper(class token of CLIP))), of the image encoder |
| v      | the learned vector that stands for "no reference"                                                |
| z, m   | latent of the photo, grey where it is to be painted (4 channels), and the mask, 1 = keep (1)     |
| x      | the noisy latent (4 channels), from pure noise to the painted photo's latent                     |
| s      | guidance_scale: eps = eps(x, v) + s (eps(x, c) - eps(x, v)), eps by the UNet of x ++ z ++ m      |

Needs diffusers 0.31 or later, torch and transformers."""

import inspect
from math import log
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB, of pixels in [0,1]
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NEUTRAL = tuple(round(255 * level) for level in CLIP_MEAN)  # the colour that CLIP's normalisation maps to 0
ENCODER = ("paint_by_example_image_encoder", "PaintByExampleImageEncoder")  # file and class in image_encoder/


def as_list(pictures, channels):
    """A picture, a list of them, or a tensor (channels,H,W) or (B,channels,H,W) -> a list."""
    if isinstance(pictures, torch.Tensor):
        return list(pictures.reshape(-1, channels, *pictures.shape[-2:]))
    return list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]


def batch_size(*lists):
    """Of lists of one length, or of one entry that goes with all of the others'."""
    lengths = sorted({len(each) for each in lists})
    if 0 in lengths or len(set(lengths) - {1}) > 1:
        raise ValueError(f"lists of {lengths} pictures do not go together: give one, or lists of one length")
    return lengths[-1]


def upright_rgba(picture):
    """Turned as its EXIF says."""
    if not isinstance(picture, Image.Image):
        raise TypeError(f"{type(picture).__name__} is not a picture: give PIL pictures, tensors or lists of them")
    return ImageOps.exif_transpose(picture).convert("RGBA")


def flatten(rgba, background):
    """RGBA -> RGB, over the background where it is transparent."""
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")


def pixels(picture):
    """RGB or L -> (3 or 1,H,W) in [0,1]."""
    array = np.array(picture, dtype=np.float32).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def resize_tensor(x, size, antialias=False):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def photo_to_tensor(photo, size):
    """RGB, or (3,h,w) in [-1,1] -> (3,H,W) in [-1,1]; size = (H,W)."""
    if isinstance(photo, torch.Tensor):
        return resize_tensor(photo[None].float(), size, antialias=True)[0]
    return pixels(photo.resize(size[::-1], Image.Resampling.LANCZOS)) * 2 - 1


def mask_to_tensor(mask, photo, size):
    """A picture, white = paint, or (1,h,w), 1 = paint -> (1,H,W) of 0 and 1, 1 = keep; grey is thresholded."""
    if isinstance(mask, torch.Tensor):
        return (1 - resize_tensor(mask[None].float(), size, antialias=True)[0] >= 0.5).float()
    mask = flatten(upright_rgba(mask), "black").convert("L")
    if isinstance(photo, Image.Image):
        if abs(mask.width * photo.height / photo.width - mask.height) > max(2, 0.01 * mask.height):
            raise ValueError(f"mask_image is {mask.size} but image is {photo.size}: use a mask of its proportions")
        mask = mask.resize(photo.size, Image.Resampling.BILINEAR)
    mask = mask.point([0] * 128 + [255] * 128).resize(size[::-1], Image.Resampling.BILINEAR)
    return (1 - pixels(mask) >= 0.5).float()


def reference_to_tensor(reference, side):
    """A picture -> (3,side,side), normalised for CLIP: squashed, not cropped, so that the whole object is seen; what is
    transparent around it is cut off. A tensor must be of this kind already."""
    if isinstance(reference, torch.Tensor):
        return reference.float()
    rgba = upright_rgba(reference)
    box = rgba.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    if box is None:
        raise ValueError("example_image is fully transparent: give one that shows the object")
    picture = flatten(rgba, NEUTRAL).crop(box).resize((side, side), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels(picture) - mean) / std


def tensor_to_pictures(images):
    """(B,3,H,W) in [0,1] -> a list."""
    return [Image.fromarray(array) for array in (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()]


def tensor_to_output(images, sizes, output_type):
    """(B,3,H,W) in [0,1] -> results of these sizes, (width, height) each."""
    if output_type == "pil" or set(sizes) != {(images.shape[-1], images.shape[-2])}:
        pictures = tensor_to_pictures(images)
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture, size in zip(pictures, sizes)]
        if output_type == "pil":
            return pictures
        if len(set(sizes)) > 1:
            raise ValueError(f"results of several sizes are no {output_type} batch: give height and width")
        images = torch.stack([pixels(picture) for picture in pictures]).to(images.device)
    return images.permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else images


class PaintByExamplePipeline(DiffusionPipeline):
    """scheduler: any that predicts epsilon; safety_checker: optional, with its feature_extractor."""

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor"]
    _callback_tensor_inputs = ["latents", "image_embeddings"]

    def __init__(self, vae, image_encoder, unet, scheduler, safety_checker=None, feature_extractor=None):
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("the safety checker needs a feature_extractor: give both or neither")
        self.register_modules(vae=vae, image_encoder=image_encoder, unet=unet, scheduler=scheduler)
        self.register_modules(safety_checker=safety_checker, feature_extractor=feature_extractor)
        if type(image_encoder).__module__.endswith(ENCODER[0]):
            self.register_to_config(image_encoder=ENCODER)  # where a saved pipeline finds it, not where it was cached
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)  # 8 pixels to a latent pixel

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As diffusers', and this file beside the weights."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / "pipeline.py").write_bytes(Path(__file__).read_bytes())
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        example_image,
        image,
        mask_image,
        height=None,
        width=None,
        num_inference_steps=50,
        guidance_scale=5.0,
        *,
        num_images_per_prompt=1,
        eta=0.0,
        generator=None,
        latents=None,
        output_type="pil",
        return_dict=True,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=("latents",),
    ):
        """Paints `example_image` into `image` where `mask_image` is white -> ImagePipelineOutput, with .images.

        image, mask_image, example_image: PIL pictures, lists of them, or tensors: (B,3,H,W) in [-1,1]; (B,1,H,W) in
            [0,1], 1 = paint; (B,3,S,S), normalised for CLIP. One of them goes with all entries of the others. An entry
            of example_image may be a list: several pictures of one object
        height, width: of the result, pixels; None: painted at the size of `size_for`, returned in the photo's own
        num_images_per_prompt: results for each row, one after the other
        eta: noise of DDIM's steps; other schedulers ignore it
        generator: one, or a list with one for each result, which draws the noise of the photo's latent, then that of x
        latents (B,4,h,w): instead of the noise of x
        output_type: "pil"; "np" (B,H,W,3) or "pt" (B,3,H,W) in [0,1]; "latent" (B,4,h,w)
        callback_on_step_end: called with (pipe, step, timestep, {"latents": ...}) after every step; the tensors that it
            returns replace those that were given. pipe._interrupt = True in it ends the sampling

        Raises ValueError and TypeError for what does not go together."""
        self._check(output_type, callback_on_step_end_tensor_inputs)
        device = self._execution_device
        photos, masks, references = as_list(image, 3), as_list(mask_image, 1), as_list(example_image, 3)
        rows = batch_size(photos, masks, references)
        samples = rows * num_images_per_prompt

        def per_sample(x):  # (1 or rows, ...) -> (samples, ...)
            return x.expand(rows, *x.shape[1:]).repeat_interleave(num_images_per_prompt, dim=0)

        # Photos x_s (B,3,H,W) in [-1,1], masks m (B,1,H,W), 1 = keep
        photos = [p if isinstance(p, torch.Tensor) else flatten(upright_rgba(p), "white") for p in photos]
        size = self.size_for(photos, height, width)
        x_s = torch.stack([photo_to_tensor(photo, size) for photo in photos]).to(device)
        pairs = list(zip(photos * rows, masks * rows))[:rows]
        m = torch.stack([mask_to_tensor(mask, photo, size) for photo, mask in pairs]).to(device)

        # All random numbers: the noise of the photo's latent, then that of x
        generators = generator if isinstance(generator, (list, tuple)) else [generator] * samples
        if len(generators) != samples:
            raise ValueError(f"there are {len(generators)} generators for {samples} results: give one for each")
        h, w = (side // self.vae_scale_factor for side in size)
        shape = (1, self.vae.config.latent_channels, h, w)
        noise = [[randn_tensor(shape, g, device, torch.float32) for _ in range(2)] for g in generators]
        z_noise, x_noise = (torch.cat(column) for column in zip(*noise))

        # What stays fixed: z ++ m, resized without antialias as in training; the reference as one token c, or v
        posterior = self.vae.encode((x_s * m).to(self.vae.dtype)).latent_dist
        z = per_sample(posterior.mean.float()) + per_sample(posterior.std.float()) * z_noise
        m = per_sample(resize_tensor(m, (h, w)))
        if (m.amin(dim=(1, 2, 3)) == 1).any():
            raise ValueError("mask_image has nothing to paint, or less than the model can see: make it white there")
        fixed = torch.cat([z * self.vae.config.scaling_factor, m], dim=1)
        c, v = self.encode_references(references)
        tokens = per_sample(c) if guidance_scale == 1 else torch.cat([v.expand(samples, -1, -1), per_sample(c)])

        # From noise to the painted latent, and back to pictures
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = (x_noise if latents is None else latents.to(x_noise)) * self.scheduler.init_noise_sigma
        extra = {"eta": eta, "generator": generator}
        callback = callback_on_step_end, callback_on_step_end_tensor_inputs
        images = self.denoise(x, fixed, tokens, guidance_scale, extra, *callback)
        if output_type != "latent":
            images = self.vae.decode((images / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()
            images = self._check_safety((images / 2 + 0.5).clamp(0, 1))
            own = [p.size if isinstance(p, Image.Image) and not (height or width) else size[::-1] for p in photos]
            own = [each for each in own * (rows // len(own)) for _ in range(num_images_per_prompt)]
            images = tensor_to_output(images, own, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def denoise(self, x, fixed, tokens, scale, extra, callback=None, asked=()):
        """x_T (B,4,h,w), fixed (B,5,h,w), tokens (2B,1,D): v, then c; or (B,1,D): c, without guidance -> x_0.

        extra: arguments of the scheduler's step, if it takes them; callback gets the tensors named in `asked`."""
        extra = {name: extra[name] for name in inspect.signature(self.scheduler.step).parameters if name in extra}
        self._interrupt = False
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            inputs = torch.cat([self.scheduler.scale_model_input(x, t), fixed], dim=1).to(self.unet.dtype)
            inputs = inputs.repeat(len(tokens) // len(x), 1, 1, 1)
            eps = self.unet(inputs, t, encoder_hidden_states=tokens).sample.float()
            if len(tokens) > len(x):
                eps_v, eps_c = eps.chunk(2)
                eps = eps_v + scale * (eps_c - eps_v)
            x = self.scheduler.step(eps, t, x, **extra).prev_sample
            if callback is not None:
                tensors = {"latents": x, "image_embeddings": tokens}
                tensors.update(callback(self, i, t, {name: tensors[name] for name in asked}) or {})
                x, tokens = tensors["latents"], tensors["image_embeddings"]
            if self._interrupt:
                break
        return x

    def encode_references(self, references):
        """R rows, each a picture or a list of pictures of one object -> c (R,1,D), a row's average, and v (1,1,D)."""
        groups = [row if isinstance(row, (list, tuple)) else [row] for row in references]
        side = self.image_encoder.config.image_size
        batch = torch.stack([reference_to_tensor(picture, side) for group in groups for picture in group])
        batch = batch.to(self._execution_device, self.image_encoder.dtype)
        c, v = self.image_encoder(batch, return_uncond_vector=True)
        return torch.stack([row.mean(dim=0) for row in c.split([len(group) for group in groups])]), v

    def size_for(self, photos, height=None, width=None):
        """(H,W) at which to paint: as given; a tensor's own; or, for a picture, the one that is nearest to its
        proportions and to the model's own area (512 x 512)."""
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        native = self.unet.config.sample_size * self.vae_scale_factor
        heights, widths = ([side] if side else range(multiple, 8 * native, multiple) for side in (height, width))

        def nearest(photo):
            if isinstance(photo, torch.Tensor):
                return height or photo.shape[-2], width or photo.shape[-1]
            sizes = [(abs(log(w / h * photo.height / photo.width)), h, w) for h in heights for w in widths]
            return min(sizes, key=lambda size: size[0] + 0.1 * abs(log(size[1] * size[2] / native**2)))[1:]

        sizes = {nearest(photo) for photo in photos}
        if len(sizes) > 1:
            raise ValueError("photos of several proportions do not fit one batch: give height and width")
        (size,) = sizes
        if any(side < multiple or side % multiple for side in size):
            raise ValueError(f"height {size[0]}, width {size[1]} do not fit the model: use multiples of {multiple}")
        return size

    def _check(self, output_type, tensor_inputs):
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type {output_type!r} is unknown: use pil, np, pt or latent")
        if set(tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callbacks get {self._callback_tensor_inputs}, not {tensor_inputs}: choose of these")
        predicts = getattr(self.scheduler.config, "prediction_type", None)
        if predicts != "epsilon" or not hasattr(self.scheduler, "alphas_cumprod"):
            raise ValueError(f"{type(self.scheduler).__name__} does not predict epsilon: use PNDM, DDIM, UniPC, ...")

    def _check_safety(self, images):
        """(B,3,H,W) in [0,1] -> the same, black where the safety checker objects."""
        if self.safety_checker is None:
            return images
        features = self.feature_extractor(tensor_to_pictures(images), return_tensors="pt").pixel_values
        return self.safety_checker(images=images, clip_input=features.to(images.device, self.safety_checker.dtype))[0]
