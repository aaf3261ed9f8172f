"""LatentDiffusion: owns the modules, the loss, the optimiser."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conventions import INPAINT, NOISY_LATENT, resize_tensor
from ldm.models.base import TrainableModel
from ldm.models.diffusion import conditioning
from ldm.models.diffusion.draws import VALIDATION, Draws
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import UserError, instantiate_from_config

ONE_TOKEN_DEAD = re.compile(r"transformer_blocks\.\d+\.(attn2\.to_[qk]|norm2)\.")


class DiffusionWrapper(nn.Module):
    """Holds the UNet under its published name, model.diffusion_model."""

    def __init__(self, unet_config: Mapping[str, Any]):
        super().__init__()
        self.diffusion_model = instantiate_from_config(unet_config, nn.Module)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.diffusion_model(x, t, context)


class LatentDiffusion(TrainableModel):
    """Paint by Example (Yang et al. 2022): UNet, autoencoder, reference encoder, learned vector, noise schedule.

    Parameters (of configs/v1.yaml, `model.params`):
        unet_config, first_stage_config, cond_stage_config: target and params of the three networks
        timesteps, linear_start, linear_end, beta_schedule: of NoiseSchedule.linear
        scale_factor: latent = scale_factor * autoencoder's posterior
        image_size, channels: of the latent, in latent pixels; the native size of a picture is image_size * factor
        first_stage_key, cond_stage_key: "inpaint" and "image", as published
        u_cond_percent: share (0 to 1) of training conditions that become the learned vector
        u_cond_drop: "sample", each condition by itself, or "batch", as published: all of a batch or none
        cond_stage_trainable: train the reference's mapper and last norm too; CLIP itself never is
        scheduler_config: of the learning rate; use_ema, ema_decay: keep an average of the UNet's weights
        monitor: by which logged value checkpoints are compared
        conditioning_key, num_timesteps_cond, log_every_t: of the published config"""

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
                raise UserError(f"config: LatentDiffusion supports {name} = {only} only, not {value}")
        if not 0 < scale_factor < math.inf:
            raise UserError(f"config: LatentDiffusion's scale_factor is {scale_factor}; give one above 0")
        if not (isinstance(image_size, int) and 0 < image_size < 10**4):
            raise UserError(
                f"config: LatentDiffusion's image_size is {image_size}; give latent pixels, for instance 64"
            )
        if u_cond_drop not in ("sample", "batch") or not 0 <= u_cond_percent <= 1:
            raise UserError("config: LatentDiffusion's u_cond_drop is sample or batch, u_cond_percent is from 0 to 1")
        self.scale_factor = scale_factor
        self.image_size = image_size
        self.channels = channels
        self.u_cond_percent, self.u_cond_drop = u_cond_percent, u_cond_drop
        self.use_ema, self.ema_decay = use_ema, ema_decay
        self.cond_stage_trainable = cond_stage_trainable
        self.scheduler_config = scheduler_config
        self.log_every_t = log_every_t
        self.monitor = monitor

        self.schedule = NoiseSchedule.linear(timesteps, linear_start, linear_end)
        for name, value in self.schedule.buffers().items():
            self.register_buffer(name, value)
        self.register_buffer("lvlb_weights", self.schedule.lvlb_weights(), persistent=False)

        self.model = DiffusionWrapper(unet_config)
        self.first_stage_model = instantiate_from_config(first_stage_config, nn.Module).eval().requires_grad_(False)
        self.cond_stage_model = instantiate_from_config(cond_stage_config, nn.Module)
        self.cond_stage_model.transformer.eval().requires_grad_(False)
        if channels != self.first_stage_model.embed_dim:
            raise UserError(f"config: LatentDiffusion's channels are {channels}, not the autoencoder's embed_dim")
        context_dim = self.model.diffusion_model.context_dim
        self.proj_out = nn.Linear(self.cond_stage_model.width, context_dim)
        self.learnable_vector = nn.Parameter(torch.randn(1, 1, context_dim))

    @property
    def num_timesteps(self) -> int:
        return self.schedule.num_timesteps

    @property
    def size_multiple(self) -> int:
        """H and W of a picture must be multiples of this, pixels (64 at full size)."""
        return self.first_stage_model.factor * self.model.diffusion_model.size_multiple

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """While training with use_ema: run with the averaged weights. Elsewhere inside is as outside: which weights of
        a checkpoint are used is chosen when it is read."""
        if hasattr(self, "model_ema"):
            with self.model_ema.applied_to(self.model):
                yield
        else:
            yield

    def get_learned_conditioning(self, reference: Tensor) -> Tensor:
        """(B,3,S,S), CLIP-normalised -> (B,1,width), before proj_out."""
        return self.cond_stage_model.encode(reference)

    def encode_first_stage(self, image: Tensor) -> DiagonalGaussianDistribution:
        """(B,3,H,W) in [-1,1] -> posterior over (B,4,h,w), not scaled."""
        return self.first_stage_model.encode(image)

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution, noise: Tensor | None = None) -> Tensor:
        """Scaled sample of the posterior, (B,4,h,w); noise: standard normal of that shape, drawn if absent."""
        return self.scale_factor * posterior.sample(noise)

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Scaled latent (B,4,h,w) -> (B,3,H,W), about [-1,1]."""
        return self.first_stage_model.decode(z / self.scale_factor)

    def apply_model(self, x: Tensor, t: Tensor, cond: Tensor | list[Tensor] | dict[str, list[Tensor]]) -> Tensor:
        """x (b,9,h,w), t (b,), context (B,M,context_dim) -> eps (B,4,h,w), B a multiple of b: see UNetModel.forward.

        As in published code the context may come as a list of tensors to join along the tokens, or as
        {"c_crossattn": list}."""
        if isinstance(cond, dict):
            cond = cond["c_crossattn"]
        context = cond if isinstance(cond, Tensor) else torch.cat(list(cond), dim=1)
        return self.model(x, t, context)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t of the forward process (Ho et al. 2020, equation 4)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        scale, sigma = (b[t].view(-1, 1, 1, 1) for b in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))
        return scale * x_start + sigma * noise

    @torch.no_grad()
    def get_input(
        self, batch: Mapping[str, Tensor], *, noise: Tensor | None = None, noise_inpaint: Tensor | None = None
    ) -> Tensor:
        """Batch of a data set -> (B,9,h,w): latent of GT ++ latent of inpaint_image ++ resized inpaint_mask.

        noise, noise_inpaint: standard normals (B,4,h,w) of the two posterior samples, drawn in this order if absent.
        Both go through the autoencoder at once."""
        images = torch.cat([batch["GT"], batch["inpaint_image"]])
        count, factor = len(batch["GT"]), self.first_stage_model.factor
        shape = (count, self.channels, *(side // factor for side in images.shape[-2:]))
        draws = [torch.randn(shape, device=images.device) if n is None else n for n in (noise, noise_inpaint)]
        z, inpaint = conditioning.encode_to_latent(self, images, torch.cat(draws)).chunk(2)
        return torch.cat([z, inpaint, resize_tensor(batch["inpaint_mask"], z.shape[-2:])], dim=1)

    def p_losses(
        self, x_start: Tensor, cond: Tensor, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """E || eps_theta(x_t, inpaint channels, c, t) - eps ||^2 (Yang et al. 2022, equation 2).

        x_start (B,9,h,w) of get_input, cond (B,M,context_dim), t (B,), noise (B,4,h,w) -> (mean loss, parts to log).
        loss_vlb is for information: the bound's weight of each sample's error."""
        z = x_start[:, NOISY_LATENT]
        noise = torch.randn_like(z) if noise is None else noise
        x = torch.cat([self.q_sample(z, t, noise), x_start[:, INPAINT]], dim=1)
        error = (self.apply_model(x, t, cond) - self.target(x, t, cond, noise)).square().mean(dim=(1, 2, 3))
        loss = error.mean()
        prefix = "train" if self.training else "val"
        return loss, {
            f"{prefix}/loss_simple": loss.detach(),
            f"{prefix}/loss_vlb": (self.lvlb_weights[t] * error).mean().detach(),
            f"{prefix}/loss": loss.detach(),
        }

    def target(self, x: Tensor, t: Tensor, cond: Tensor, noise: Tensor) -> Tensor:
        """What the UNet is to predict for x (B,9,h,w): the noise (B,4,h,w) that is in it."""
        return noise

    # ------------------------------------------------------------------------------------------ training

    def batch_loss(
        self, batch: Mapping[str, Tensor], draws: Draws, u_cond_percent: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """p_losses of a data set's batch. The condition of a sample is the learned vector where draws.uniform is below
        u_cond_percent (Yang et al. 2022, section 3.4); both are computed for all, so that every parameter has a
        gradient in every step."""
        x_start = self.get_input(batch, noise=draws.noise_gt, noise_inpaint=draws.noise_inpaint)
        uniform = draws.uniform if self.u_cond_drop == "sample" else draws.uniform[:1].expand_as(draws.uniform)
        dropped = (uniform < u_cond_percent).view(-1, 1, 1)
        unconditional = conditioning.unconditional_token(self, len(dropped))
        context = torch.where(dropped, unconditional, conditioning.reference_token(self, batch["ref_imgs"]))
        return self.p_losses(x_start, context, draws.t, draws.noise)

    def make_draws(self, batch: Mapping[str, Tensor], seeds: Sequence[Sequence[int]]) -> Draws:
        """What a step draws for this batch, a seed for each sample."""
        factor = self.first_stage_model.factor
        shape = (self.channels, *(side // factor for side in batch["GT"].shape[-2:]))
        return Draws.from_seeds(seeds, shape, self.num_timesteps, batch["GT"].device)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        seeds = self.training_seeds(len(batch["GT"]))
        loss, parts = self.batch_loss(batch, self.make_draws(batch, seeds), self.u_cond_percent)
        bar = parts.pop("train/loss_simple")
        self.log("train/loss_simple", bar, on_step=True, prog_bar=True, sync_dist=True, batch_size=len(seeds))
        self.log_dict(parts, on_step=True, sync_dist=True, batch_size=len(seeds))
        return loss

    def evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int, name: str) -> None:
        """The same samples, times and noise every time, and no condition dropped, so that checkpoints compare.

        Logs loss_simple, and loss_simple_ema of the averaged weights: the same where none are kept."""
        places = self.sample_positions(len(batch["GT"]))
        first = batch_idx * getattr(self.trainer, f"{name}_dataloaders").batch_size
        draws = self.make_draws(batch, [(0, VALIDATION, first * self.trainer.world_size + place) for place in places])
        _, parts = self.batch_loss(batch, draws, 0.0)
        averaged = parts
        if hasattr(self, "model_ema"):
            with self.ema_scope():
                _, averaged = self.batch_loss(batch, draws, 0.0)
        losses = {
            f"{name}/loss_simple": parts["val/loss_simple"],
            f"{name}/loss_simple_ema": averaged["val/loss_simple"],
        }
        self.log_dict(losses, on_epoch=True, sync_dist=True, batch_size=len(places))

    def setup(self, stage: str) -> None:
        """Freezes what has no gradient, so that it costs neither optimizer state nor communication."""
        if stage != "fit":
            return
        if self.use_ema and not hasattr(self, "model_ema"):
            self.model_ema = LitEma(self.model, self.ema_decay)
            # the same in every process; DDP would send all of them around in every step
            names = [f"model_ema.{name}" for name, _ in self.model_ema.named_buffers()]
            self._ddp_params_and_buffers_to_ignore = names
        if self.cond_stage_model.tokens == 1:
            for name, parameter in self.model.named_parameters():
                if ONE_TOKEN_DEAD.search(name):
                    parameter.requires_grad_(False)
        if not self.cond_stage_trainable:
            self.cond_stage_model.requires_grad_(False)
        if self.u_cond_percent == 0:
            self.learnable_vector.requires_grad_(False)

    def on_fit_start(self) -> None:
        if self.device.type == "cuda":
            self.to(memory_format=torch.channels_last)

    def compile_networks(self) -> None:
        for network in (self.model.diffusion_model, self.first_stage_model.encoder, self.cond_stage_model.transformer):
            network.compile(dynamic=False)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """The autoencoder and CLIP stay in eval mode."""
        super().train(mode)
        self.first_stage_model.eval()
        self.cond_stage_model.transformer.eval()
        return self

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if hasattr(self, "model_ema"):
            self.model_ema(self.model)
