"""Asking the model which of several references is in a region (diffusion classifier, Li et al. 2023, 2303.16203).

The reference under whose token the model predicts the noise on the photo best is the answer:
argmin_k E || eps - eps_theta(x_t, t, c_k) ||^2, here over the region alone, with the same t and noise for all k.

| variable  | symbol                                                                      |
|-----------|-----------------------------------------------------------------------------|
| errors    | || eps - eps_theta(x_t, t, c_k) ||^2, mean over the region; a row per draw    |
| draw      | a pair (t, eps), the same for all candidates                                |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.fast.networks import Networks
from ldm.methods.source import mean_latents
from ldm.models.diffusion.conditioning import reference_token
from ldm.models.diffusion.denoiser import Denoiser
from ldm.models.diffusion.schedule import NoiseSchedule

FIRST_ROUND = 4  # draws; every later round doubles what there is
INTERVAL = (300, 900)  # timesteps: below, the photo itself says what the noise is, above, nothing does
BATCH_SIZE = 16  # candidates in one evaluation of the UNet

# (numbers of candidates, numbers of draws) -> errors, a row per draw and a column per candidate
Errors = Callable[[Sequence[int], Sequence[int]], NDArray[np.float64]]


@dataclass(frozen=True)
class Ranked:
    """candidate: its number; error: mean over its draws; behind: by how much that is more than the best candidate's, on
    the same draws, and its standard error; draws: how many it has seen before it was dropped, or all."""

    candidate: int
    error: float
    behind: float
    standard_error: float
    draws: int


def draw(number: int, shape: Sequence[int], seed: int = 0) -> tuple[int, Tensor]:
    """The number-th draw: t and noise (1,4,h,w). Timesteps fill INTERVAL evenly, however many there are (van der
    Corput's sequence)."""
    share = int(f"{number:032b}"[::-1], 2) / 2**32
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    first, last = INTERVAL
    return first + int(share * (last - first)), torch.randn(1, *shape, generator=generator)


def noise_errors(
    denoiser: Denoiser, inpaint: Tensor, tokens: Tensor, source: Tensor, schedule: NoiseSchedule, seed: int = 0
) -> Errors:
    """How well the model predicts noise on a photo under each of K tokens.

    inpaint (1,5,h,w); tokens (K,M,D); source: x_0 of the photo (1,4,h,w). The UNet gets x with batch 1 and contexts
    with batch K, and runs the layers before the first token only once."""
    paint = (inpaint[:, -1:] < 1).float()

    @torch.no_grad()
    def errors(candidates: Sequence[int], draws: Sequence[int]) -> NDArray[np.float64]:
        groups = torch.tensor(candidates, device=tokens.device).split(BATCH_SIZE)
        columns = []
        for group in groups:
            eps = denoiser(inpaint, tokens[group])
            rows = []
            for number in draws:
                t, noise = draw(number, source.shape[1:], seed)
                noise = noise.to(source)
                abar = float(schedule.alphas_cumprod[t])
                e = eps(abar**0.5 * source + (1.0 - abar) ** 0.5 * noise, t)
                rows.append(((e - noise).square() * paint).sum(dim=(1, 2, 3)) / (paint.sum() * source.shape[1]))
            columns.append(torch.stack(rows))
        return torch.cat(columns, dim=1).double().cpu().numpy()

    return errors


def rounds(candidates: int, draws: int) -> Iterator[tuple[int, int]]:
    """Successive halving (Jamieson & Talwalkar 2016): (draws of all rounds so far, candidates that stay after it)."""
    seen, left = min(FIRST_ROUND, draws), candidates
    while True:
        left = max(2, -(-left // 2))
        yield seen, left if seen < draws else 1
        if seen >= draws:
            return
        seen = min(2 * seen, draws)


def rank(errors: Errors, candidates: int, draws: int) -> list[Ranked]:
    """All candidates, from the best to the worst. Every round drops the half with the larger errors; the survivors see
    `draws` draws. At least two survive, so that the best has a rival on all draws."""
    alive = np.arange(candidates)
    dropped: list[int] = []
    table = np.full((draws, candidates), np.nan)
    done = 0
    for seen, left in rounds(candidates, draws):
        if seen > done:
            table[done:seen, alive] = errors(alive.tolist(), range(done, seen))
            done = seen
        order = alive[np.argsort(table[:seen, alive].mean(axis=0), kind="stable")]
        alive, dropped = order[:left], [*order[left:], *dropped]
    ranking = [*alive, *dropped]
    best = table[:, ranking[0]]
    return [_ranked(int(k), table[:, k], best) for k in ranking]


def _ranked(candidate: int, own: NDArray[np.float64], best: NDArray[np.float64]) -> Ranked:
    """own, best: errors by draw; NaN where a candidate was no longer asked."""
    own = own[~np.isnan(own)]
    behind = own - best[: len(own)]
    deviation = float(behind.std(ddof=1)) if len(own) > 1 else float("nan")
    return Ranked(candidate, float(own.mean()), float(behind.mean()), deviation / len(own) ** 0.5, len(own))


@torch.no_grad()
def which_reference(
    networks: Networks,
    schedule: NoiseSchedule,
    image: Tensor,
    mask: Tensor,
    references: Tensor,
    draws: int = 64,
    seed: int = 0,
) -> list[Ranked]:
    """The references from the likeliest to the least likely.

    image (1,3,H,W) in [-1,1], mask (1,1,H,W), 1 = keep, references (K,3,S,S), CLIP-normalised; draws, seed: of noise"""
    source, inpaint = mean_latents(networks, image, mask)
    tokens = torch.cat([reference_token(networks, group) for group in references.split(BATCH_SIZE)])
    return rank(noise_errors(networks.denoiser, inpaint, tokens, source, schedule, seed), len(references), draws)
