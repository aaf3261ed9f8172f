"""PaintByExample: load once, call with pictures, get pictures.

edit = PaintByExample.load("configs/v1.yaml", "checkpoints/model.ckpt")
result = edit(image, mask, reference, scale=5, steps=50, seed=321)

    image, mask, reference -> Placed: a window around the mask -> Inputs: tensors -> a picture -> pasted into the image
                              window.py                 prepare              sample             window.py, background.py
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoint import load_model
from ldm.checkpoint.locate import choose_model
from ldm.checkpoint.lora import merge_into, read_adapter
from ldm.conventions import resize_tensor, tensor_to_image
from ldm.editing.asymmetric_decoder import AsymmetricDecoder
from ldm.editing.background import check_background
from ldm.editing.checks import check_request, out_of_memory_is_told, pick_device
from ldm.editing.inputs import Inputs, Planned, inputs_of, size_for, stack
from ldm.editing.references import fit_reference
from ldm.editing.safety import SafetyChecker
from ldm.editing.window import Context, Placed
from ldm.fast.networks import Networks, check_network_options, choose_precision
from ldm.images import upright_mask, upright_rgb
from ldm.models.diffusion.conditioning import encode_to_latent, inpaint_channels, reference_token, unconditional_token
from ldm.models.diffusion.denoiser import blended_eps, guided_eps
from ldm.models.diffusion.presets import resolve_preset
from ldm.models.diffusion.sampling import Callback, Step, sample
from ldm.util import UserError, batches_alike

References = Image.Image | tuple[Image.Image, ...]  # of one object


class PaintByExample:
    """precision: "full" (float32), "bf16", "fp16" (half precision in the networks, float32 in their last layers and the
    sampler's arithmetic) or "autocast", the half precision that suits the device; None: autocast on CUDA, else full.
    fast, compiled, offload: see Networks. The model's weights as they are now are what edits use.

    decoder (an AsymmetricDecoder) and safety_checker (a SafetyChecker), where set, have a part in every edit."""

    def __init__(
        self,
        model,
        precision: str | None = None,
        fast: bool = True,
        compiled: bool = False,
        offload: torch.device | None = None,
    ):
        self.model = model
        self.device = offload or next(model.parameters()).device
        self.precision = choose_precision(self.device, precision)
        self.networks = Networks(model, self.precision, fast, compiled, offload)
        self.decoder: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.safety_checker: Callable[[Tensor], Tensor] | None = None

    @classmethod
    @out_of_memory_is_told
    def load(
        cls,
        config: Any = None,
        ckpt: str | os.PathLike | None = None,
        device: str | None = None,
        precision: str | None = None,
        lora: str | os.PathLike | None = None,
        lora_scale: float = 1.0,
        fast: bool = True,
        compiled: bool = False,
        offload: bool = False,
        decoder: str | os.PathLike | None = None,
        safety_checker: str | os.PathLike | None = None,
    ) -> PaintByExample:
        """config: a path or an OmegaConf node; ckpt: a path of any format, or "hub"; for what None stands, see
        ldm.checkpoint.choose_model; device: see pick_device; lora: an adapter that fine-tuning wrote, added to the
        weights lora_scale times (0 not at all, 1 as trained); offload: keep the networks on the CPU, and on the device
        only the one at work; decoder: see AsymmetricDecoder.load; safety_checker: see SafetyChecker.load."""
        where = pick_device(device)
        if offload and compiled:
            raise UserError("--offload and --compile do not go together; leave one of them out")
        # what can be told before gigabytes are read, is
        check_network_options(where, choose_precision(where, precision), fast, compiled)
        adapter = None if lora is None else read_adapter(lora)
        home, checker = "cpu" if offload else where, None
        if safety_checker is not None:
            checker = SafetyChecker.load(safety_checker, home)
        model = load_model(*choose_model(config, ckpt, adapted=lora is not None), home)
        if adapter:
            merge_into(model, adapter, lora_scale)
        edit = cls(model, precision, fast, compiled, where if offload else None)
        edit.safety_checker = checker
        if decoder is not None:
            edit.decoder = AsymmetricDecoder.load(decoder, home, model.first_stage_model.factor, model.channels)
        return edit

    @property
    def native_size(self) -> int:
        """Side of the pictures that the model was made for, pixels (512 at full size)."""
        return self.model.image_size * self.model.first_stage_model.factor

    def size_for(self, image: Image.Image, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """See editing.inputs.size_for: a square photo gives the native square, one of 4:3 384 x 512 at full size."""
        return size_for(image, self.native_size, self.model.size_multiple, height, width)

    def prepare(
        self,
        image: Image.Image,
        mask: Image.Image,
        reference: References,
        height: int | None = None,
        width: int | None = None,
        reference_fit: str = "squash",
    ) -> Inputs:
        """Pictures of any size and mode -> Inputs with B = 1, of the whole image; H and W as in size_for. The mask
        follows the image; several references are of one object; reference_fit: see editing.references.fit_reference.

        Raises UserError: a mask of another shape or with nothing to paint, H or W that the model cannot take."""
        white, picture = upright_mask(mask, image), upright_rgb(image)
        size = self.size_for(picture, height, width)
        references = reference if isinstance(reference, tuple) else (reference,)
        crops = [fit_reference(each, reference_fit) for each in references]
        return inputs_of(
            picture, white, crops, size, self.model.first_stage_model.factor, self.model.cond_stage_model.image_size
        )

    def plan(
        self,
        image: Image.Image,
        mask: Image.Image,
        reference: References,
        height: int | None = None,
        width: int | None = None,
        *,
        context: Context = None,
        reference_fit: str = "squash",
    ) -> Planned:
        """One edit, ready to be made: its window in the image, and the tensors of that; the arguments of __call__."""
        aspect = 1.0
        if height and width:
            self.size_for(image, height, width)  # says what is wrong with them before the window takes their shape
            aspect = width / height
        place = Placed.of(image, mask, self.native_size, context, aspect)
        return Planned(place, self.prepare(place.source, place.region, reference, height, width, reference_fit))

    def start(self, seed: int, height: int, width: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """All that is random in one picture, from its seed alone: noise of the masked image's posterior (4,h,w), then
        x_T (4,h,w), then the generator of each step's noise."""
        generator = torch.Generator().manual_seed(seed)
        factor = self.model.first_stage_model.factor
        shape = (self.model.channels, height // factor, width // factor)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), generator

    def alike(self, inputs: Inputs, refresh: int = 1, **_: Any) -> Hashable:
        """What edits have in common that are made together, so that a picture does not depend on those beside it; of
        the arguments of `sample`, refresh has a part in that."""
        factor, (height, width) = self.model.first_stage_model.factor, inputs.image.shape[-2:]
        keep = resize_tensor(inputs.mask, (height // factor, width // factor))
        return height, width, self.networks.rectangle(keep, refresh)

    @out_of_memory_is_told
    @torch.no_grad()
    def sample(
        self,
        inputs: Inputs,
        seeds: Sequence[int],
        scale: float = 5.0,
        steps: int = 50,
        sampler: str = "plms",
        eta: float = 0.0,
        x_T: Tensor | None = None,
        progress: bool = True,
        callback: Callback | None = None,
        interval: tuple[int, int] | None = None,
        refresh: int = 1,
        *,
        strength: float = 1.0,
        blend_latents: bool = False,
    ) -> Tensor:
        """Inputs of B edits and a seed for each -> pictures (B,3,H,W), about [-1,1]; the arguments of __call__.

        x_T (B,4,h,w): the start, instead of the seeds' own. interval: first and last timestep with guidance; None: all
        have it. refresh: every how many evaluations of the UNet are of the whole picture, the others being of a
        rectangle around the region; 1: all."""
        check_request(scale, steps, sampler, eta, seeds, self.model.num_timesteps, interval, strength, refresh)
        batch, _, height, width = inputs.image.shape
        assert len(seeds) == batch
        posterior_noise, start, generators = zip(*(self.start(seed, height, width) for seed in seeds), strict=True)

        def noise() -> Tensor:
            draws = [torch.randn(start[0].shape, generator=generator) for generator in generators]
            return torch.stack(draws).to(self.device)

        x_T = (torch.stack(start) if x_T is None else x_T).to(self.device)
        mask = inputs.mask.to(self.device)
        posterior_noise = torch.stack(posterior_noise).to(self.device)
        inpaint = inpaint_channels(self.networks, inputs.inpaint_image.to(self.device), mask, posterior_noise)
        tokens = reference_token(self.networks, inputs.reference.to(self.device))
        context = torch.stack([each.mean(dim=0) for each in tokens.split(inputs.counts or [1] * batch)])
        uncond = unconditional_token(self.networks, batch)
        source = None
        if strength < 1 or blend_latents:
            posterior_mean = torch.zeros_like(x_T)
            source = encode_to_latent(self.networks, inputs.image.to(self.device), posterior_mean)

        with tqdm(desc=sampler, total=steps, unit="step", disable=not progress) as bar:

            def on_step(step: Step) -> None:
                bar.total = step.total
                bar.update()
                if callback:
                    callback(step)

            denoiser = functools.partial(self.networks.denoiser, refresh=refresh)
            eps = guided_eps(denoiser, inpaint, context, uncond, scale, interval)
            if blend_latents:
                eps = blended_eps(eps, source, inpaint[:, -1:], self.model.schedule)
            with self.networks.unet_on_device():
                z = sample(sampler, eps, x_T, self.model.schedule, steps, eta, noise, on_step, source, strength)
        if self.decoder is None:
            pictures = self.networks.decode_first_stage(z)
        else:
            pictures = self.decoder(z / self.model.scale_factor, inputs.image.to(self.device), mask)
        if not pictures.isfinite().all():
            cure = "use --precision full" if self.precision != "full" else "the checkpoint may be damaged"
            raise UserError(f"the result is not finite in {self.precision} precision; {cure}")
        return self.safety_checker(pictures) if self.safety_checker else pictures

    def make(
        self,
        plans: Sequence[Planned],
        seeds: Sequence[int],
        batch_size: int = 4,
        *,
        background: str = "exact",
        feather: float | None = None,
        **sampling: Any,
    ) -> list[Image.Image]:
        """Planned edits and a seed for each -> whole pictures; sampling: further arguments of `sample`, the others are
        those of __call__."""
        check_background(background, feather)
        results: list[Image.Image | None] = [None] * len(plans)
        for rows in batches_alike(range(len(plans)), batch_size, lambda i: self.alike(plans[i].inputs, **sampling)):
            tensors = self.sample(stack([plans[i].inputs for i in rows]), [seeds[i] for i in rows], **sampling)
            for i, tensor in zip(rows, tensors, strict=True):
                results[i] = plans[i].place.paste(tensor_to_image(tensor), background, feather)
        return results

    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image],
        mask: Image.Image | Sequence[Image.Image],
        reference: References | Sequence[References],
        scale: float = 5.0,
        steps: int | None = None,
        seed: int | Sequence[int] = 321,
        n_samples: int = 1,
        sampler: str | None = None,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        progress: bool = True,
        callback: Callback | None = None,
        preset: str | None = None,
        *,
        background: str = "exact",
        feather: float | None = None,
        context: Context = None,
        strength: float = 1.0,
        reference_fit: str = "squash",
        blend_latents: bool = False,
    ) -> Image.Image | list[Image.Image] | list[list[Image.Image]]:
        """Repaint the mask's white region of the image with the reference's object.

        image, mask, reference: PIL pictures of any size and mode, or lists of them, one edit per entry; a single
            picture goes with every entry of the others. A tuple of references is several pictures of one object
        scale: guidance, 0 to 100; 1 follows the reference alone, 5 is usual
        steps: of the sampler, 1 to 999 (50); sampler: "plms" (the default), "ddim", "dpm++" or "unipc"; eta: noise of
            ddim, 0 to 1
        preset: "fast" or "draft", instead of sampler and steps
        seed: of the first sample of every edit, or a list, one per edit; the others count up from it. A picture depends
            on its seed, not on how many are made beside it
        n_samples: pictures per edit
        height, width: at which the model paints, pixels, multiples of 64 at full size; see size_for
        batch_size: most pictures to make at once; more at once need more memory
        progress: show a bar; callback: called with a sampling.Step after every step
        background: what stays of the image around the mask, "exact", "feather", "poisson" or "none"; feather: width of
            the band over which the painted blends into it, pixels of the image; see ldm.editing.background
        context: how much of the image the model sees, see editing.window.window_around; "photo" is all, as published
        strength: 1 starts from noise; less, from the image's own region with less noise: its layout stays (SDEdit)
        reference_fit: how a reference becomes square, "squash" (as published), "pad" or "crop"
        blend_latents: keep the image around the mask in every step (Blended Latent Diffusion)

        -> a picture of the image's size, RGB; with n_samples > 1 a list of them; for lists of inputs, a list of those.
        Raises UserError for what the pictures or numbers are wrong about."""
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} {value} is out of range; use 1 or more")
        check_background(background, feather)
        how = resolve_preset(preset, sampler, steps)._asdict() | {"scale": scale, "eta": eta, "strength": strength}
        groups = (image, mask, reference, seed)
        single = (Image.Image, tuple, int)
        lengths = {len(group) for group in groups if not isinstance(group, single)}
        if len(lengths) > 1:
            raise UserError(f"lists of {sorted(lengths)} pictures do not go together; give one mask and reference each")
        count = lengths.pop() if lengths else 1
        images, masks, references, firsts = ([x] * count if isinstance(x, single) else x for x in groups)
        flat = [each for group in references for each in (group if isinstance(group, tuple) else (group,))]
        if not flat or not all(isinstance(picture, Image.Image) for picture in [*images, *masks, *flat]):
            raise TypeError("image, mask and reference are PIL pictures, or lists of them")
        seeds = [first + i for first in firsts for i in range(n_samples)]
        check_request(seeds=seeds, num_timesteps=self.model.num_timesteps, **how)
        plans = [
            self.plan(*row, height, width, context=context, reference_fit=reference_fit)
            for row in zip(images, masks, references, strict=True)
        ]
        pictures = self.make(
            [plan for plan in plans for _ in range(n_samples)],
            seeds,
            batch_size,
            background=background,
            feather=feather,
            progress=progress,
            callback=callback,
            blend_latents=blend_latents,
            **how,
        )
        if n_samples > 1:
            pictures = [pictures[i : i + n_samples] for i in range(0, len(pictures), n_samples)]
        return pictures[0] if all(isinstance(group, single) for group in groups) else pictures
