"""Samplers: functions of eps(x, t) and a NoiseSchedule that lead from x_T to x_0.

`eps(x, t)` takes x (B,4,h,w) and t, the timestep of all of them, and gives the predicted noise (B,4,h,w). t is a
number, not a tensor: what depends on it is decided without waiting for a GPU. After every step `callback` gets a Step;
what it raises ends the sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError

Eps = Callable[[Tensor, int], Tensor]


class Step(NamedTuple):
    """What a callback sees after a step: `index` counts from 0 to total - 1, x is the new latent, pred_x0 the clean
    latent as predicted in this step."""

    index: int
    total: int
    t: int
    x: Tensor
    pred_x0: Tensor


Callback = Callable[[Step], None]


def ddim_timesteps(steps: int, num_timesteps: int = 1000) -> np.ndarray:
    """(S,) ascending int64, used from last to first.

    As published: every floor(T/S)-th timestep from 1 on. Where S does not divide T that gives more than S timesteps,
    ceil(T / floor(T/S)), which is kept (7 -> 8, 60 -> 63, 334 -> 500). For some S it runs past the last timestep (3, 9,
    27, ...): those are spaced evenly over T instead.
    Raises UserError unless 1 <= S < T."""
    if not 1 <= steps < num_timesteps:
        raise UserError(f"{steps} sampling steps are out of range; use 1 to {num_timesteps - 1}, for instance 50")
    timesteps = np.arange(0, num_timesteps, num_timesteps // steps) + 1
    if timesteps[-1] >= num_timesteps:
        timesteps = np.arange(steps) * num_timesteps // steps + 1
    return timesteps


def ddim_parameters(
    schedule: NoiseSchedule, timesteps: Sequence[int], eta: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alphas, alphas_prev, sigmas, each (S,) float64, of Song et al. 2021, equation 16.

    alphas_prev is alpha-bar of the timestep moved to; the last step moves to alphas_cumprod[0], not to 1."""
    abar = schedule.alphas_cumprod
    alphas = abar[timesteps]
    alphas_prev = np.append(abar[0], alphas[:-1])
    sigmas = eta * np.sqrt((1.0 - alphas_prev) / (1.0 - alphas) * (1.0 - alphas / alphas_prev))
    return alphas, alphas_prev, sigmas


def x0_from_eps(x: Tensor, e: Tensor, abar: float) -> Tensor:
    """The x_0 of x = sqrt(abar) x_0 + sqrt(1 - abar) e."""
    return (x - (1.0 - abar) ** 0.5 * e) / abar**0.5


def eps_from_x0(x: Tensor, x_0: Tensor, abar: float) -> Tensor:
    """The noise e of x = sqrt(abar) x_0 + sqrt(1 - abar) e: what leads from x back to x_0."""
    return (x - abar**0.5 * x_0) / (1.0 - abar) ** 0.5


def ddim_step(x: Tensor, e: Tensor, alpha: float, alpha_prev: float, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
    """One step of Song et al. 2021, equation 12, without its noise term -> (x_prev, pred_x0).

    | variable   | symbol        |
    |------------|---------------|
    | e          | eps_theta     |
    | alpha      | alpha_t       |
    | alpha_prev | alpha_{t-1}   |
    | pred_x0    | predicted x_0 |
    """
    pred_x0 = x0_from_eps(x, e, alpha)
    direction = (1.0 - alpha_prev - sigma**2) ** 0.5 * e
    return alpha_prev**0.5 * pred_x0 + direction, pred_x0


def sample_ddim(
    eps: Eps,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021) from x = x_T (B,4,h,w).

    eta: 0 deterministic, 1 as noisy as DDPM, no more. noise: gives a standard normal (B,4,h,w), called once a step if
    eta > 0."""
    alphas, alphas_prev, sigmas = ddim_parameters(schedule, timesteps, eta)
    total = len(timesteps)
    for i, index in enumerate(reversed(range(total))):
        t = int(timesteps[index])
        e = eps(x, t)
        x, pred_x0 = ddim_step(x, e, float(alphas[index]), float(alphas_prev[index]), float(sigmas[index]))
        if eta > 0:
            x = x + float(sigmas[index]) * (torch.randn_like(x) if noise is None else noise())
        if callback:
            callback(Step(i, total, t, x, pred_x0))
    return x


def sample_plms(
    eps: Eps,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    callback: Callback | None = None,
) -> Tensor:
    """Pseudo linear multistep (Liu et al. 2022, equations 9 and 12) from x = x_T (B,4,h,w).

    Adams-Bashforth over the last raw eps, up to four of them. The first step looks one step ahead (a second
    evaluation, Heun) and then starts again from x_T."""
    alphas, alphas_prev, _ = ddim_parameters(schedule, timesteps)
    total = len(timesteps)
    old: list[Tensor] = []  # raw eps of the last steps, newest first, at most three
    for i, index in enumerate(reversed(range(total))):
        alpha, alpha_prev = float(alphas[index]), float(alphas_prev[index])
        t = int(timesteps[index])
        e = eps(x, t)
        if len(old) == 0:
            ahead, _ = ddim_step(x, e, alpha, alpha_prev)
            e_prime = (e + eps(ahead, int(timesteps[max(index - 1, 0)]))) / 2
        elif len(old) == 1:
            e_prime = (3 * e - old[0]) / 2
        elif len(old) == 2:
            e_prime = (23 * e - 16 * old[0] + 5 * old[1]) / 12
        else:
            e_prime = (55 * e - 59 * old[0] + 37 * old[1] - 9 * old[2]) / 24
        x, pred_x0 = ddim_step(x, e_prime, alpha, alpha_prev)
        old = [e, *old[:2]]
        if callback:
            callback(Step(i, total, t, x, pred_x0))
    return x


def diffusers_scheduler(name: str, schedule: NoiseSchedule, steps: int):
    """diffusers' scheduler for "dpm++" (DPM-Solver++(2M), Lu et al. 2022) or "unipc" (Zhao et al. 2023), set.

    From 10 on, the steps are even in sigma^(1/7), sigma = sqrt(1 / alpha-bar - 1) (Karras et al. 2022, equation 5); if
    there are fewer, even in t ("trailing"). Each comes closer there to where many steps lead."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    cls = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[name]
    scheduler = cls(
        num_train_timesteps=schedule.num_timesteps,
        trained_betas=schedule.betas,
        solver_order=2,
        prediction_type="epsilon",
        timestep_spacing="trailing",
        use_karras_sigmas=steps >= 10,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def sample_diffusers(
    eps: Eps, x: Tensor, scheduler, timesteps: Sequence[int], callback: Callback | None = None
) -> Tensor:
    """Run one of diffusers' schedulers that predict x_0 inside (see diffusers_scheduler) from x = x_T (B,4,h,w).

    timesteps: the last ones of those that the scheduler has been set to."""
    total = len(timesteps)
    scheduler.set_begin_index(len(scheduler.timesteps) - total)
    for i, t in enumerate(timesteps):
        e = eps(x, t)
        x = scheduler.step(e, t, x).prev_sample
        if callback:
            callback(Step(i, total, t, x, scheduler.model_outputs[-1]))
    return x


SAMPLERS = ("plms", "ddim", "dpm++", "unipc")


def check_sampler(name: str, steps: int, eta: float, num_timesteps: int) -> np.ndarray:
    """The ddim_timesteps of a valid request; dpm++ and unipc take exactly `steps`, spaced by diffusers.

    Raises UserError: unknown name, steps or eta out of range."""
    if name not in SAMPLERS:
        raise UserError(f"sampler {name!r} is unknown; use one of {', '.join(SAMPLERS)}")
    if name in ("dpm++", "unipc") and steps > num_timesteps // 2:
        raise UserError(f"{steps} sampling steps are too many for {name}; use 1 to {num_timesteps // 2}")
    if not 0.0 <= eta <= 1.0 or (eta > 0 and name != "ddim"):
        raise UserError(f"eta {eta} does not go with {name}; use 0, or with the sampler ddim 0 to 1")
    return ddim_timesteps(steps, num_timesteps)


def sample(
    name: str,
    eps: Eps,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    callback: Callback | None = None,
    source: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """x_T (B,4,h,w) -> x_0 by one of SAMPLERS. Raises UserError as check_sampler does.

    strength below 1: SDEdit (Meng et al. 2022), only the steps from timesteps below strength * T on, from the source's
    x_0 (B,4,h,w) with x as its noise; at 0 it stays as it is."""
    timesteps = check_sampler(name, steps, eta, schedule.num_timesteps)
    alphas_cumprod = schedule.alphas_cumprod[timesteps]
    if name in ("dpm++", "unipc"):
        scheduler = diffusers_scheduler(name, schedule, steps)
        timesteps = scheduler.timesteps.flip(0).tolist()
        alphas_cumprod = 1 / (1 + scheduler.sigmas[:-1].flip(0).double() ** 2)
    if strength < 1:
        timesteps = [t for t in timesteps if t < strength * schedule.num_timesteps]
        if not timesteps:
            return source
        abar = float(alphas_cumprod[len(timesteps) - 1])
        x = abar**0.5 * source + (1.0 - abar) ** 0.5 * x
    if name == "ddim":
        return sample_ddim(eps, x, schedule, timesteps, eta, noise, callback)
    if name == "plms":
        return sample_plms(eps, x, schedule, timesteps, callback)
    return sample_diffusers(eps, x, scheduler, timesteps[::-1], callback)
