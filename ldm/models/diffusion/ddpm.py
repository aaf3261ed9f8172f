"""LatentDiffusion, the model of Paint by Example (Yang et al. 2022): its networks, its condition, its loss.

training.py has what Lightning needs to train it, denoiser.py and sampling.py what an edit needs to sample from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conventions import INPAINT, MASK, NOISY_LATENT, resize_tensor
from ldm.models.diffusion import conditioning
from ldm.models.diffusion.draws import Draws
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.training import DiffusionTraining
from ldm.modules.detail import BlockDetail
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.util import UserError, instantiate_from_config

Condition = Tensor | list[Tensor] | dict[str, Any]  # of LatentDiffusion.apply_model


class DiffusionWrapper(nn.Module):
    """Holds the UNet under its published name, model.diffusion_model."""

    def __init__(self, unet_config: Mapping[str, Any]):
        super().__init__()
        self.diffusion_model = instantiate_from_config(unet_config, nn.Module)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, details: Sequence[BlockDetail] | None = None) -> Tensor:
        return self.diffusion_model(x, t, context, details)


class LatentDiffusion(DiffusionTraining):
    """Paint by Example (Yang et al. 2022): UNet, autoencoder, reference encoder, learned vector, noise schedule.

    Parameters (of configs/v1.yaml, `model.params`):
        unet_config, first_stage_config, cond_stage_config: target and params of the three networks
        timesteps, linear_start, linear_end, beta_schedule: of NoiseSchedule.linear
        scale_factor: latent = scale_factor * autoencoder's posterior
        image_size, channels: of the latent, in latent pixels; a picture's native size is image_size * factor pixels
        first_stage_key, cond_stage_key: "inpaint" and "image", as published
        u_cond_percent: share (0 to 1) of training conditions that the learned vector replaces
        min_snr_gamma: gamma of the loss weight min(SNR_t, gamma) / SNR_t (Hang et al. 2023, arXiv 2303.09556, section
            3.4); null: no weight, as published
        background_weight: weight, 0 to 1, of the errors outside the region to paint, where the latent of the masked
            image already shows what to predict; 1 as published. A sample's weights are divided by their mean
        u_cond_drop: what is replaced together: "sample", each condition by itself, or "batch", all of a batch or none,
            as published
        cond_stage_trainable: also train the reference's mapper and last norm; CLIP itself is never trained
        scheduler_config: of the learning rate
        use_ema, ema_decay: keep an average of the UNet's weights
        monitor: the logged value by which checkpoints are compared
        conditioning_key, num_timesteps_cond, log_every_t: of published configs; accepted and not used"""

    alphas_cumprod: Tensor  # (T,) float32, as all of schedule.BUFFERS
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    lvlb_weights: Tensor

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any],
        timesteps: int = 1000,
        linear_start: float = 0.00085,
        linear_end: float = 0.0120,
        beta_schedule: str = "linear",
        scale_factor: float = 0.18215,
        image_size: int = 64,
        channels: int = 4,
        first_stage_key: str = "inpaint",
        cond_stage_key: str = "image",
        conditioning_key: str = "crossattn",
        u_cond_percent: float = 0.2,
        num_timesteps_cond: int = 1,
        log_every_t: int = 200,
        monitor: str | None = None,
        cond_stage_trainable: bool = True,
        scheduler_config: Mapping[str, Any] | None = None,
        use_ema: bool = False,
        ema_decay: float = 0.9999,
        u_cond_drop: str = "sample",
        min_snr_gamma: float | None = None,
        background_weight: float = 1.0,
    ):
        super().__init__()
        for name, value, only in (
            ("beta_schedule", beta_schedule, "linear"),
            ("first_stage_key", first_stage_key, "inpaint"),
            ("cond_stage_key", cond_stage_key, "image"),
            ("conditioning_key", conditioning_key, "crossattn"),
            ("num_timesteps_cond", num_timesteps_cond, 1),
        ):
            if value != only:
                raise UserError(f"config: LatentDiffusion's {name} is {value}: use {only}, the only supported value")
        check_settings(scale_factor, image_size, u_cond_percent, u_cond_drop)
        check_weights(min_snr_gamma, background_weight)
        self.min_snr_gamma, self.background_weight = min_snr_gamma, background_weight
        self.scale_factor = scale_factor
        self.image_size = image_size
        self.channels = channels
        self.u_cond_percent, self.u_cond_drop = u_cond_percent, u_cond_drop
        self.use_ema, self.ema_decay = use_ema, ema_decay
        self.cond_stage_trainable = cond_stage_trainable
        self.scheduler_config = scheduler_config
        self.monitor = monitor

        self.schedule = NoiseSchedule.linear(timesteps, linear_start, linear_end)
        self.num_timesteps = self.schedule.num_timesteps
        for name, buffer in self.schedule.buffers().items():
            self.register_buffer(name, buffer)
        self.register_buffer("lvlb_weights", self.schedule.lvlb_weights(), persistent=False)

        self.model = DiffusionWrapper(unet_config)
        self.first_stage_model = instantiate_from_config(first_stage_config, nn.Module).eval().requires_grad_(False)
        self.cond_stage_model = instantiate_from_config(cond_stage_config, nn.Module)
        self.cond_stage_model.transformer.eval().requires_grad_(False)
        if channels != self.first_stage_model.embed_dim:
            raise UserError(
                f"config: LatentDiffusion's channels are {channels} but the autoencoder's embed_dim is "
                f"{self.first_stage_model.embed_dim}: use the same number"
            )
        context_dim = self.model.diffusion_model.context_dim
        self.proj_out = nn.Linear(self.cond_stage_model.width, context_dim)
        self.learnable_vector = nn.Parameter(torch.randn(1, 1, context_dim))

    @property
    def size_multiple(self) -> int:
        """H and W of a picture must be multiples of this many pixels (64 at full size)."""
        return self.first_stage_model.factor * self.model.diffusion_model.size_multiple

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        """images (B,3,H,W) -> (4,h,w), the shape of one latent."""
        height, width = images.shape[-2:]
        return self.channels, height // self.first_stage_model.factor, width // self.first_stage_model.factor

    # ------------------------------------------------------------------------------------------ networks

    def get_learned_conditioning(self, reference: Tensor) -> Tensor:
        """reference (B,3,S,S), CLIP-normalised -> (B,M,width), before proj_out; M is 1 with the bottleneck."""
        return self.cond_stage_model.encode(reference)

    def encode_first_stage(self, image: Tensor) -> DiagonalGaussianDistribution:
        """(B,3,H,W) in [-1,1] -> posterior over (B,4,h,w), not scaled."""
        return self.first_stage_model.encode(image)

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution, noise: Tensor | None = None) -> Tensor:
        """z = scale_factor * (mean + std * noise), (B,4,h,w); noise: standard normal of that shape, drawn if absent."""
        return self.scale_factor * posterior.sample(noise)

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Scaled latent (B,4,h,w) -> (B,3,H,W), about [-1,1]."""
        return self.first_stage_model.decode(z / self.scale_factor)

    def apply_model(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """x (b,9,h,w), t (b,), context (B,M,context_dim) -> eps (B,4,h,w), B a multiple of b: see UNetModel.forward.

        As in published code the context may come as a list of tensors to join along the tokens, or as
        {"c_crossattn": list}, here also with "details", what a detail path adds for the last rows."""
        named = cond if isinstance(cond, dict) else {"c_crossattn": cond}
        context = named["c_crossattn"]
        context = context if isinstance(context, Tensor) else torch.cat(list(context), dim=1)
        details = named.get("details")
        return self.model(x, t, context) if details is None else self.model(x, t, context, details)

    # ------------------------------------------------------------------------------------------ loss

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise (Ho et al. 2020, equation 4).

        x_start: x_0 (B,4,h,w); t (B,); noise: standard normal (B,4,h,w), drawn if absent."""
        noise = torch.randn_like(x_start) if noise is None else noise
        scale = self.sqrt_alphas_cumprod[t].view(-1, 1, 1, 1)
        sigma = self.sqrt_one_minus_alphas_cumprod[t].view(-1, 1, 1, 1)
        return scale * x_start + sigma * noise

    @torch.no_grad()
    def get_input(
        self, batch: Mapping[str, Tensor], *, noise: Tensor | None = None, noise_inpaint: Tensor | None = None
    ) -> Tensor:
        """A data set's batch -> (B,9,h,w): latent of GT ++ latent of inpaint_image ++ resized inpaint_mask, 1 = keep.

        noise, noise_inpaint: standard normals (B,4,h,w) of the two posterior samples, drawn in this order if absent."""
        shape, device = (len(batch["GT"]), *self.latent_shape(batch["GT"])), batch["GT"].device
        draws = [torch.randn(shape, device=device) if n is None else n for n in (noise, noise_inpaint)]
        return self.input_of(self.encode_pictures(batch), *draws)

    def p_losses(
        self, x_start: Tensor, cond: Condition, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """E || eps_theta(y_t, (1 - m) * x_s, c, t) - eps ||^2 (Yang et al. 2022, equation 2).

        | variable | symbol                                             |
        |----------|----------------------------------------------------|
        | z        | y_0, the latent of the image, (B,4,h,w)            |
        | x        | y_t ++ (1 - m) * x_s ++ mask, (B,9,h,w)            |
        | cond     | c, (B,M,context_dim), or as apply_model takes it   |
        | noise    | eps, (B,4,h,w), drawn if absent                    |

        x_start (B,9,h,w): of get_input; t (B,) -> the loss, and values to log: loss, and without the weights of
        min_snr_gamma and background_weight loss_simple, their mean, and loss_vlb, which weights each sample's error as
        the variational bound does."""
        z = x_start[:, NOISY_LATENT]
        noise = torch.randn_like(z) if noise is None else noise
        x = torch.cat([self.q_sample(z, t, noise), x_start[:, INPAINT]], dim=1)
        squared = (self.apply_model(x, t, cond) - self.target(x, t, cond, noise)).square()
        error = squared.mean(dim=(1, 2, 3))
        loss = self.weighted_loss(squared, error, t, x_start)
        stage = "train" if self.training else "val"
        return loss, {
            f"{stage}/loss_simple": error.mean().detach(),
            f"{stage}/loss_vlb": (self.lvlb_weights[t] * error).mean().detach(),
            f"{stage}/loss": loss.detach(),
        }

    def weighted_loss(self, squared: Tensor, error: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The mean of squared errors (B,4,h,w), or of their means (B,), with the config's weights."""
        if self.background_weight != 1:
            weight = 1 + (self.background_weight - 1) * x_start[:, MASK]
            error = (weight * squared).mean(dim=(1, 2, 3)) / weight.mean(dim=(1, 2, 3))
        if self.min_snr_gamma is not None:
            snr = self.alphas_cumprod[t] / (1 - self.alphas_cumprod[t])
            error = snr.clamp(max=self.min_snr_gamma) / snr * error
        return error.mean()

    def target(self, x: Tensor, t: Tensor, cond: Condition, noise: Tensor) -> Tensor:
        """What the UNet learns to predict for x (B,9,h,w): the noise (B,4,h,w) in it."""
        return noise

    @torch.no_grad()
    def encode_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A data set's batch -> what the frozen networks make of it, all that training needs of the pictures:

        | key             | value                                                                                |
        |-----------------|--------------------------------------------------------------------------------------|
        | gt_moments      | (B,8,h,w), mean ++ log variance of the autoencoder's posterior, not scaled           |
        | inpaint_moments | the same of inpaint_image                                                            |
        | mask            | (B,1,h,w), the resized inpaint_mask, 1 = keep                                        |
        | ref_features    | (B,M,width), CLIP's features of the reference, before the mapper                     |

        A batch that was encoded before, by scripts/prepare_latents.py, only becomes float32."""
        if "gt_moments" in batch:
            return {name: tensor.float() for name, tensor in batch.items()}
        return {**self.encode_pictures(batch), "ref_features": self.cond_stage_model.features(batch["ref_imgs"])}

    @torch.no_grad()
    def encode_pictures(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """encode_batch without the reference. Both pictures go through the autoencoder together."""
        gt, inpaint = self.first_stage_model.moments(torch.cat([batch["GT"], batch["inpaint_image"]])).chunk(2)
        mask = resize_tensor(batch["inpaint_mask"], gt.shape[-2:])
        return {"gt_moments": gt, "inpaint_moments": inpaint, "mask": mask}

    def input_of(self, encoded: Mapping[str, Tensor], noise: Tensor, noise_inpaint: Tensor) -> Tensor:
        """get_input of an encoded batch."""
        z, inpaint = (
            self.get_first_stage_encoding(DiagonalGaussianDistribution(encoded[name]), each)
            for name, each in (("gt_moments", noise), ("inpaint_moments", noise_inpaint))
        )
        return torch.cat([z, inpaint, encoded["mask"]], dim=1)

    def batch_loss(
        self, batch: Mapping[str, Tensor], draws: Draws, u_cond_percent: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """p_losses of a data set's batch, encoded or not. The learned vector v replaces the condition of samples whose
        draws.uniform is below u_cond_percent (Yang et al. 2022, section 3.4).

        v and the condition are computed for all samples, so that every parameter has a gradient in every step."""
        encoded = self.encode_batch(batch)
        x_start = self.input_of(encoded, draws.noise_gt, draws.noise_inpaint)
        uniform = draws.uniform if self.u_cond_drop == "sample" else draws.uniform[:1].expand_as(draws.uniform)
        dropped = (uniform < u_cond_percent).view(-1, 1, 1)
        return self.p_losses(x_start, self.condition(encoded, dropped), draws.t, draws.noise)

    def condition(self, encoded: Mapping[str, Tensor], dropped: Tensor) -> Condition:
        """What the UNet is given of an encoded batch's references: c, or v for samples that are dropped (B,1,1)."""
        v = conditioning.unconditional_token(self, len(dropped))
        return torch.where(dropped, v, self.proj_out(self.cond_stage_model.project(encoded["ref_features"])))


def check_settings(scale_factor: float, image_size: int, u_cond_percent: float, u_cond_drop: str) -> None:
    """Raises UserError for settings of LatentDiffusion that are out of range."""
    if not 0 < scale_factor < math.inf:
        raise UserError(f"config: LatentDiffusion's scale_factor is {scale_factor}: use a number above 0")
    if not (isinstance(image_size, int) and 0 < image_size < 10**4):
        raise UserError(f"config: LatentDiffusion's image_size is {image_size}: use latent pixels, for instance 64")
    if u_cond_drop not in ("sample", "batch"):
        raise UserError(f"config: LatentDiffusion's u_cond_drop is {u_cond_drop}: use sample or batch")
    if not 0 <= u_cond_percent <= 1:
        raise UserError(f"config: LatentDiffusion's u_cond_percent is {u_cond_percent}: use a number from 0 to 1")


def check_weights(min_snr_gamma: float | None, background_weight: float) -> None:
    """Raises UserError for weights of the loss that are out of range."""
    if min_snr_gamma is not None and not 0 < min_snr_gamma < math.inf:
        raise UserError(f"config: LatentDiffusion's min_snr_gamma is {min_snr_gamma}: use a number above 0, or null")
    if not 0 < background_weight <= 1:
        raise UserError(f"config: LatentDiffusion's background_weight is {background_weight}: use a number up to 1")
