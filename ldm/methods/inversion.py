"""Inversion: noise that leads back to the photo, so that an edit from it keeps the photo's layout.

An edit follows sample_ddim with eps(x, t) of the reference's token; the inversion, before it, with eps(x, t) of the
token of the region's own crop, where other models need a caption.

| variable   | symbol                                                                     |
|------------|----------------------------------------------------------------------------|
| source     | x_0 of the photo (B,4,h,w)                                                 |
| timesteps  | t of the sampling steps, ascending, as of ddim_timesteps                   |
| path[i]    | x before the i-th of the timesteps; path[0] is x_0, path[i + 1] is x_t     |
| z          | z_t, the noise of a step of sample_ddim with eta = 1 (B,4,h,w)             |
| v          | v_t, the vector of the branch without condition, at a timestep (B,M,D)     |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.sampling import Callback, Eps, Step, ddim_parameters, ddim_step
from ldm.models.diffusion.schedule import NoiseSchedule

NULL_STEPS = 10  # of Adam at each timestep
NULL_RATE = 0.01  # of Adam, in units of the vector's entries, which are about 1

EpsOf = Callable[[Tensor], Eps]  # a token (B,M,D), of the condition or of v -> eps(x, t) with it


def ddpm_inversion(
    eps: Eps,
    source: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    noise: Callable[[], Tensor],
    callback: Callback | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024, arXiv 2304.06140, equations 5 and 6).

    noise: a standard normal (B,4,h,w), drawn anew for every timestep. -> x_T, and z of every step in the order in which
    sample_ddim asks for it. From them and the same eps it returns the source, to rounding."""
    alphas, alphas_prev, sigmas = ddim_parameters(schedule, timesteps, eta=1.0)
    path = [source] + [float(a) ** 0.5 * source + (1.0 - float(a)) ** 0.5 * noise() for a in alphas]
    z, total = [], len(timesteps)
    for i in reversed(range(total)):
        x, sigma = path[i + 1], float(sigmas[i])
        mean, pred_x0 = ddim_step(x, eps(x, timesteps[i]), float(alphas[i]), float(alphas_prev[i]), sigma)
        z.append((path[i] - mean) / sigma)
        if callback:
            callback(Step(total - 1 - i, total, timesteps[i], path[i], pred_x0))
    return path[-1], z


def ddim_inversion(
    eps: Eps, source: Tensor, schedule: NoiseSchedule, timesteps: Sequence[int], callback: Callback | None = None
) -> list[Tensor]:
    """DDIM backwards (Song et al. 2021, section 4.3) -> path. Each step takes the eps that the sampler's step back will
    take, but at the x before it; so the way back ends near the source, nearer with more steps and without guidance."""
    alphas, alphas_prev, _ = ddim_parameters(schedule, timesteps)
    path = [source]
    for i, (t, alpha, alpha_prev) in enumerate(zip(timesteps, alphas, alphas_prev, strict=True)):
        x, pred_x0 = ddim_step(path[-1], eps(path[-1], t), float(alpha_prev), float(alpha))
        path.append(x)
        if callback:
            callback(Step(i, len(timesteps), t, x, pred_x0))
    return path


@torch.enable_grad()
def null_vectors(
    eps_of: EpsOf,
    v: Tensor,
    path: Sequence[Tensor],
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    callback: Callback | None = None,
) -> dict[int, Tensor]:
    """Null-text inversion (Mokady et al. 2023, arXiv 2211.09794, algorithm 1): v_t with which the guided sampler
    returns along the path, by NULL_STEPS of Adam at each timestep, starting at the v of the one before.

    eps_of: v_t -> eps(x, t) with guidance towards the source's token, which lets gradients through; v (B,M,D): where
    the first one starts. The pictures of a batch do not mix: every one has its own vectors."""
    alphas, alphas_prev, _ = ddim_parameters(schedule, timesteps)
    x, found, total = path[-1], {}, len(timesteps)

    def step_back(v: Tensor, i: int) -> tuple[Tensor, Tensor]:
        return ddim_step(x, eps_of(v)(x, timesteps[i]), float(alphas[i]), float(alphas_prev[i]))

    for i in reversed(range(total)):
        v = v.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([v], NULL_RATE)
        for _ in range(NULL_STEPS):
            loss = F.mse_loss(step_back(v, i)[0], path[i], reduction="sum")
            (v.grad,) = torch.autograd.grad(loss, [v])
            optimizer.step()
        found[timesteps[i]] = v.detach()
        with torch.no_grad():
            x, pred_x0 = step_back(v, i)
            if callback:
                callback(Step(total - 1 - i, total, timesteps[i], x, pred_x0))
    return found
