"""Samplers: functions that lead from x_T to x_0, given eps(x, t) and a NoiseSchedule.

`eps(x, t)` returns the predicted noise (B,4,h,w) of x (B,4,h,w) at timestep t. t is a number, not a tensor, so that
decisions which depend on it need not wait for a GPU. `callback` is called with a Step after every step; an exception
that it raises ends the sampling.

To add a sampler, write a function like sample_ddim, name it in SAMPLERS and call it in `sample`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import UserError

DIFFUSERS_SAMPLERS = ("dpm++", "unipc")
SAMPLERS = ("plms", "ddim", *DIFFUSERS_SAMPLERS)

Eps = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Step:
    """A finished step, for callbacks.

    index: from 0 to total - 1; t: its timestep; x (B,4,h,w): the latent after it; pred_x0 (B,4,h,w): the clean latent
    that it predicted"""

    index: int
    total: int
    t: int
    x: Tensor
    pred_x0: Tensor


Callback = Callable[[Step], None]


def ddim_timesteps(steps: int, num_timesteps: int = 1000) -> NDArray[np.int64]:
    """Timesteps of S sampling steps, (S,) int64, ascending; samplers use them from last to first.

    As published: every floor(T/S)-th timestep from 1 on. If S does not divide T, these are more than S timesteps:
    ceil(T / floor(T/S)), for instance 63 for S = 60 and 500 for S = 334. For some S (3, 9, 27, ...) they would run past
    the last timestep; then S timesteps are spaced evenly over T instead.
    Raises UserError unless 1 <= S < T."""
    if not 1 <= steps < num_timesteps:
        raise UserError(f"{steps} sampling steps are out of range: use 1 to {num_timesteps - 1}, for instance 50")
    timesteps = np.arange(0, num_timesteps, num_timesteps // steps) + 1
    if timesteps[-1] >= num_timesteps:
        timesteps = np.arange(steps) * num_timesteps // steps + 1
    return timesteps


def ddim_parameters(
    schedule: NoiseSchedule, timesteps: Sequence[int] | NDArray[np.int64], eta: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """alphas, alphas_prev, sigmas of each step, each (S,) float64 (Song et al. 2021, equation 16).

    | variable    | symbol (Song et al. write alpha for alpha-bar)                                  |
    |-------------|---------------------------------------------------------------------------------|
    | alphas      | alpha_t                                                                         |
    | alphas_prev | alpha_{t-1}, of the timestep that the step leads to; at the end alphas_cumprod[0] |
    | sigmas      | sigma_t                                                                         |
    """
    abar = schedule.alphas_cumprod
    alphas = abar[timesteps]
    alphas_prev = np.append(abar[0], alphas[:-1])
    sigmas = eta * np.sqrt((1.0 - alphas_prev) / (1.0 - alphas) * (1.0 - alphas / alphas_prev))
    return alphas, alphas_prev, sigmas


def x0_from_eps(x: Tensor, e: Tensor, abar: float) -> Tensor:
    """x_0 (B,4,h,w), solved from x = sqrt(abar) x_0 + sqrt(1 - abar) e (Ho et al. 2020, equation 4)."""
    return (x - (1.0 - abar) ** 0.5 * e) / abar**0.5


def eps_from_x0(x: Tensor, x_0: Tensor, abar: float) -> Tensor:
    """e (B,4,h,w), solved from x = sqrt(abar) x_0 + sqrt(1 - abar) e: the noise between x and x_0."""
    return (x - abar**0.5 * x_0) / (1.0 - abar) ** 0.5


def ddim_step(x: Tensor, e: Tensor, alpha: float, alpha_prev: float, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
    """One step of Song et al. 2021, equation 12, without its noise term -> (x_{t-1}, pred_x0), each (B,4,h,w).

    | variable   | symbol        |
    |------------|---------------|
    | x          | x_t           |
    | e          | eps_theta     |
    | alpha      | alpha_t       |
    | alpha_prev | alpha_{t-1}   |
    | sigma      | sigma_t       |
    | pred_x0    | predicted x_0 |
    """
    pred_x0 = x0_from_eps(x, e, alpha)
    direction = (1.0 - alpha_prev - sigma**2) ** 0.5 * e
    return alpha_prev**0.5 * pred_x0 + direction, pred_x0


def sample_ddim(
    eps: Eps,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | NDArray[np.int64],
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12) from x = x_T (B,4,h,w) -> x_0.

    eta: from 0, deterministic, to 1, as noisy as DDPM. noise: returns a standard normal (B,4,h,w), called once per step
    if eta > 0."""
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
    timesteps: Sequence[int] | NDArray[np.int64],
    callback: Callback | None = None,
) -> Tensor:
    """Pseudo linear multistep (Liu et al. 2022, equations 9 and 12) from x = x_T (B,4,h,w) -> x_0.

    | variable | symbol                                                    |
    |----------|-----------------------------------------------------------|
    | e        | e_t, the raw eps of this step                             |
    | old      | e of the previous steps, newest first, at most three      |
    | e_prime  | e'_t, their Adams-Bashforth combination                   |

    The first step has no previous e. It also evaluates eps at the next timestep, averages both (Heun's method), and
    starts again from x_T."""
    alphas, alphas_prev, _ = ddim_parameters(schedule, timesteps)
    total = len(timesteps)
    old: list[Tensor] = []
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


def diffusers_scheduler(name: str, schedule: NoiseSchedule, steps: int) -> Any:
    """diffusers' scheduler for "dpm++" (DPM-Solver++(2M), Lu et al. 2022) or "unipc" (Zhao et al. 2023), set to steps.

    10 or more steps are spaced evenly in sigma^(1/7), sigma = sqrt(1 / alpha-bar - 1) (Karras et al. 2022, equation 5);
    fewer are spaced evenly in t ("trailing"). Of the two, each comes closer to the result of many steps there."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    classes: dict[str, Any] = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
    scheduler = classes[name](
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
    eps: Eps, x: Tensor, scheduler: Any, timesteps: Sequence[int], callback: Callback | None = None
) -> Tensor:
    """The sampler of a diffusers_scheduler, from x = x_T (B,4,h,w) -> x_0.

    timesteps: all of the scheduler's, or only the last ones, descending."""
    total = len(timesteps)
    scheduler.set_begin_index(len(scheduler.timesteps) - total)
    for i, t in enumerate(timesteps):
        e = eps(x, t)
        x = scheduler.step(e, t, x).prev_sample
        if callback:
            callback(Step(i, total, t, x, scheduler.model_outputs[-1]))
    return x


def check_sampler(name: str, steps: int, eta: float, num_timesteps: int) -> NDArray[np.int64]:
    """Checks the arguments of `sample` -> ddim_timesteps for these steps. DIFFUSERS_SAMPLERS do not use them, and take
    exactly `steps`. Raises UserError: unknown sampler, steps or eta out of range."""
    if name not in SAMPLERS:
        raise UserError(f"sampler {name!r} is unknown: use one of {', '.join(SAMPLERS)}")
    if name in DIFFUSERS_SAMPLERS and steps > num_timesteps // 2:
        raise UserError(f"{steps} sampling steps are too many for {name}: use 1 to {num_timesteps // 2}")
    if not 0.0 <= eta <= 1.0 or (eta > 0 and name != "ddim"):
        raise UserError(f"eta {eta} does not go with {name}: use 0 to 1 with ddim, and 0 with other samplers")
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

    strength: below 1, SDEdit (Meng et al. 2022): sampling starts from the source, an x_0 (B,4,h,w), with x as its
    noise, and takes only the steps at timesteps below strength * T. At 0 the source is returned unchanged."""
    timesteps: list[int] = check_sampler(name, steps, eta, schedule.num_timesteps).tolist()
    alphas_cumprod = schedule.alphas_cumprod[timesteps]
    scheduler = None
    if name in DIFFUSERS_SAMPLERS:
        scheduler = diffusers_scheduler(name, schedule, steps)
        timesteps = scheduler.timesteps.flip(0).tolist()
        alphas_cumprod = (1 / (1 + scheduler.sigmas[:-1].flip(0).double() ** 2)).numpy()
    if strength < 1:
        assert source is not None, f"strength is {strength} but there is no source: give one"
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
