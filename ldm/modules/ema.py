"""Exponential moving average of weights, under the published names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class LitEma(nn.Module):
    """Averages of a module's trainable parameters. The average of parameter `a.b.c` is the buffer `abc`.

    | variable    | symbol                                                             |
    |-------------|--------------------------------------------------------------------|
    | num_updates | n                                                                  |
    | decay       | d = min(decay, (1 + n) / (10 + n)): early weights are soon forgotten |

    Each call updates average <- average + (1 - d) (parameter - average)."""

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        super().__init__()
        assert 0 <= decay <= 1
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.buffer_names = {name: name.replace(".", "") for name in trainable}
        for name, parameter in trainable.items():
            self.register_buffer(self.buffer_names[name], parameter.detach().clone())

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Updates the averages with the model's current parameters."""
        self.num_updates += 1
        n = int(self.num_updates)
        decay = min(float(self.decay), (1 + n) / (10 + n))
        parameters = dict(model.named_parameters())
        averages = [getattr(self, buffer) for buffer in self.buffer_names.values()]
        update = get_ema_multi_avg_fn(decay)
        update(averages, [parameters[name].detach() for name in self.buffer_names], n)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        parameters = dict(model.named_parameters())
        trained = {name: parameters[name].detach().clone() for name in self.buffer_names}
        self._copy_to(model, {name: getattr(self, buffer) for name, buffer in self.buffer_names.items()})
        try:
            yield
        finally:
            self._copy_to(model, trained)

    @staticmethod
    @torch.no_grad()
    def _copy_to(model: nn.Module, values: Mapping[str, Tensor]) -> None:
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name])
