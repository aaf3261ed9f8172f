"""The published sampler call, on top of sampling.sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.denoiser import guided_eps, make_denoiser
from ldm.models.diffusion.sampling import Step, sample

if TYPE_CHECKING:  # it imports Lightning, which takes two seconds
    from ldm.models.diffusion.ddpm import LatentDiffusion

NEUTRAL = {  # arguments of the published call that are accepted only with these values, which have no effect
    "mask": None,
    "x0": None,
    "temperature": 1.0,
    "noise_dropout": 0.0,
    "quantize_x0": False,
    "score_corrector": None,
    "corrector_kwargs": None,
    "normals_sequence": None,
}


class DDIMSampler:
    """`DDIMSampler(model).sample(...)` with the published arguments; model is a LatentDiffusion."""

    name = "ddim"

    def __init__(self, model: LatentDiffusion, schedule: str = "linear"):
        assert schedule == "linear", f"schedule {schedule!r} is not supported: use linear"
        self.model = model

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Tensor,
        callback: Callable[[int], None] | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        eta: float = 0.0,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Tensor | None = None,
        test_model_kwargs: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        noise: Callable[[], Tensor] | None = None,
        verbose: bool = True,
        **published: object,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """-> (x_0 (batch_size, *shape), {"x_inter": [x_T, ...], "pred_x0": [x_T, ...]}).

        S: number of steps
        shape: (4,h,w)
        conditioning: c (B,M,context_dim)
        unconditional_conditioning: v (1 or B,M,context_dim)
        test_model_kwargs: inpaint_image, the latent of the masked image (B,4,h,w), and inpaint_mask (B,1,h,w), 1 = keep
        callback(i), img_callback(pred_x0, i): called after step i, counted from 0
        log_every_t: the returned lists hold the first step and, counted back from the last, every log_every_t-th
        x_T (B,4,h,w): standard normal noise to start from, drawn from `generator` if absent
        noise: a function that returns the noise (B,4,h,w) of a step if eta > 0, drawn from `generator` if absent
        verbose: show a progress bar
        published: the arguments of NEUTRAL"""
        for name, value in published.items():
            assert name in NEUTRAL and value == NEUTRAL[name], (
                f"{self.name}: {name}={value!r} is not supported: leave it out"
            )
        device = conditioning.device

        def randn() -> Tensor:
            source = generator.device if generator else device
            return torch.randn(batch_size, *shape, generator=generator, device=source).to(device)

        x = randn() if x_T is None else x_T
        assert test_model_kwargs, "test_model_kwargs are missing: give inpaint_image and inpaint_mask"
        width = self.model.model.diffusion_model.context_dim
        assert conditioning.shape[-1] == width, (
            f"conditioning is {conditioning.shape[-1]} wide, not {width}: pass it through model.proj_out first"
        )
        for name, latent in test_model_kwargs.items():
            assert latent.shape[-2:] == tuple(shape[-2:]), (
                f"{name} is {tuple(latent.shape)}, which does not fit shape {tuple(shape)}: use one size"
            )
        inpaint = torch.cat([test_model_kwargs["inpaint_image"], test_model_kwargs["inpaint_mask"]], dim=1)
        denoiser = make_denoiser(self.model.apply_model)
        eps = guided_eps(denoiser, inpaint, conditioning, unconditional_conditioning, unconditional_guidance_scale)
        lists: dict[str, list[Tensor]] = {"x_inter": [x], "pred_x0": [x]}
        with tqdm(desc=self.name, total=S, unit="step", disable=not verbose) as bar:

            def on_step(step: Step) -> None:
                bar.total = step.total
                bar.update()
                if callback:
                    callback(step.index)
                if img_callback:
                    img_callback(step.pred_x0, step.index)
                remaining = step.total - step.index - 1
                if remaining % log_every_t == 0 or step.index == 0:
                    lists["x_inter"].append(step.x)
                    lists["pred_x0"].append(step.pred_x0)

            x = sample(self.name, eps, x, self.model.schedule, S, eta, noise or randn, on_step)
        return x, lists
