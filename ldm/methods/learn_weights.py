"""Few numbers of the model learn an object from a few pictures, while others keep what it knew (DreamBooth, Ruiz et al.
2023, arXiv 2208.12242). Which numbers train is said elsewhere: ldm/training/adapters.py.

| variable | symbol                                                                                       |
|----------|----------------------------------------------------------------------------------------------|
| examples | x and c: views of the object, and the tokens of its pictures                                 |
| prior    | x_pr and c_pr: what the model painted before learning, and the tokens that it was painted by |
| weight   | lambda, in E || eps - eps(x_t, t, c) ||^2 + lambda E || eps - eps(x_pr_t, t, c_pr) ||^2      |

The sum is the paper's equation 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.methods.learn_token import ApplyModel, Learning, draw_batch, token_loss
from ldm.models.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Examples:
    """views (N,9,h,w): of token_loss; tokens (N,M,D): the condition of each."""

    views: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Progress:
    """steps: made so far; trained: the numbers, by name; optimizer: Adam's state; learned_from: a digest of the
    pictures and of how they are learned from."""

    steps: int = 0
    trained: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    learned_from: str = ""


def learn_weights(
    apply_model: ApplyModel,
    parameters: Mapping[str, Tensor],
    examples: Examples,
    prior: Examples | None,
    weight: float,
    schedule: NoiseSchedule,
    how: Learning,
    start: Progress = Progress(),
) -> Iterator[tuple[Progress, float]]:
    """Changes the parameters in place and yields, after every step from start.steps + 1 to how.steps, how far it is and
    that step's loss.

    parameters: by name, those of the model that require a gradient; prior: None for no second batch."""
    optimizer = torch.optim.Adam(parameters.values(), lr=how.rate)
    if start.steps:
        optimizer.load_state_dict(dict(start.optimizer))
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start.trained[name])
    abars = torch.from_numpy(schedule.alphas_cumprod).to(examples.views)

    def loss_of(some: Examples, step: int, first: int) -> Tensor:
        chosen, t, noise = draw_batch(how, step, some.views, schedule.num_timesteps, first)
        return token_loss(apply_model, some.views[chosen], t, abars[t], noise, some.tokens[chosen])

    for step in range(start.steps, how.steps):
        optimizer.zero_grad()
        loss = loss_of(examples, step, 0)
        loss.backward()
        total = loss.item()
        if prior is not None:  # one after the other, which takes the memory of one batch
            loss = weight * loss_of(prior, step, how.batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        trained = {name: parameter.detach() for name, parameter in parameters.items()}
        yield Progress(step + 1, trained, optimizer.state_dict(), start.learned_from), total
