"""Textual inversion (Gal et al. 2022, arXiv 2208.01618) of this model's one token: c is learned, the model is not.

| variable   | symbol                                                                                |
|------------|---------------------------------------------------------------------------------------|
| token      | c* = argmin_c E || eps - eps(x_t, t, c) ||^2, over pictures of one object (equation 2) |
| abar       | alpha-bar_t                                                                           |
| region     | where the mean over positions is taken: around it, the masked latent shows the photo  |"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.conventions import MASK, NOISY_LATENT
from ldm.methods.tokens import LearnedToken
from ldm.models.diffusion.draws import Draws
from ldm.models.diffusion.schedule import NoiseSchedule

ApplyModel = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B,9,h,w), t (B,), contexts (B,M,D) -> eps (B,4,h,w)


def token_loss(apply_model: ApplyModel, views: Tensor, t: Tensor, abar: Tensor, noise: Tensor, token: Tensor) -> Tensor:
    """The mean over views and over the positions of their regions of || eps - eps(x_t, t, c) ||^2.

    views (B,9,h,w): x_0 ++ what the UNet sees besides, see conditioning.inpaint_channels; t, abar (B,): timesteps and
    their alpha-bar; noise (B,4,h,w); token c (M,D), or one for each view (B,M,D). Its gradient is c's alone if the
    model's weights have none."""
    abar = abar.view(-1, 1, 1, 1)
    x_t = abar.sqrt() * views[:, NOISY_LATENT] + (1 - abar).sqrt() * noise
    eps = apply_model(torch.cat([x_t, views[:, NOISY_LATENT.stop :]], dim=1), t, token.expand(len(views), -1, -1))
    region = 1 - views[:, MASK]
    error = ((eps - noise).square() * region).mean(dim=(1, 2, 3)) / region.mean(dim=(1, 2, 3))
    return error.mean()


@dataclass(frozen=True)
class Learning:
    """How a token, or an adapter, is learned.

    steps: in all; batch: noised views in each; rate: Adam's step, of a token in root mean squares of the first one;
    seed: of views, timesteps and noise. A step's draws depend on its number, so that learning goes on where it
    stopped."""

    steps: int = 200
    batch: int = 8
    rate: float = 0.02
    seed: int = 321


def draw_batch(
    how: Learning, step: int, views: Tensor, num_timesteps: int, first: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A step's batch: numbers of views (B,), timesteps (B,) and noise (B,4,h,w); B is how.batch.

    The timesteps come from equal parts of the schedule, which varies less than independent ones (Kingma et al. 2021,
    appendix I). first: number of the batch's first seed among those of the step."""
    seeds = [(how.seed, step, first + i) for i in range(how.batch)]
    draws = Draws.from_seeds(seeds, views[0, NOISY_LATENT].shape, num_timesteps, views.device)
    part = torch.arange(how.batch, device=views.device)
    t = (part * num_timesteps + draws.t) // how.batch
    return (draws.uniform * len(views)).long(), t, draws.noise


def learn_token(
    apply_model: ApplyModel, views: Tensor, start: LearnedToken, schedule: NoiseSchedule, how: Learning = Learning()
) -> Iterator[tuple[LearnedToken, float]]:
    """Yields the token after every step from start.steps + 1 to how.steps, and that step's loss.

    views (N,9,h,w): of token_loss, of one object's pictures."""
    token = start.token.to(views.device).clone().requires_grad_()
    unit = start.unit or float(start.token.square().mean().sqrt())
    optimizer = torch.optim.Adam([token], lr=how.rate * unit)
    if start.steps:
        moments = {"exp_avg": start.first.to(token), "exp_avg_sq": start.second.to(token)}
        optimizer.state[token] = {
            "step": torch.tensor(float(start.steps)),
            **{k: m.clone() for k, m in moments.items()},
        }
    abars = torch.from_numpy(schedule.alphas_cumprod).to(views)
    for step in range(start.steps, how.steps):
        chosen, t, noise = draw_batch(how, step, views, schedule.num_timesteps)
        loss = token_loss(apply_model, views[chosen], t, abars[t], noise, token)
        (token.grad,) = torch.autograd.grad(loss, token)
        optimizer.step()
        state = optimizer.state[token]
        learned = replace(start, token=token.detach().clone(), steps=step + 1, unit=unit)
        yield replace(learned, first=state["exp_avg"].clone(), second=state["exp_avg_sq"].clone()), loss.item()
