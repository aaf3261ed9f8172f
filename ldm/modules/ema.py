"""Exponential moving average of weights, under the published names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class LitEma(nn.Module):
    """Averages of a module's trainable parameters, as buffers: that of `a.b.c` is called `abc`.

    update():  average += (1 - d) * (parameter - average), d = min(decay, (1 + n) / (10 + n)) after n updates, so that
    the first steps, far from where training will go, are forgotten fast."""

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        super().__init__()
        assert 0 <= decay <= 1
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        self.buffer_names = {name: name.replace(".", "") for name, p in model.named_parameters() if p.requires_grad}
        for name, parameter in model.named_parameters():
            if name in self.buffer_names:
                self.register_buffer(self.buffer_names[name], parameter.detach().clone())

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        self.num_updates += 1
        n = int(self.num_updates)
        decay = min(float(self.decay), (1 + n) / (10 + n))
        parameters = dict(model.named_parameters())
        averages = [getattr(self, place) for place in self.buffer_names.values()]
        torch._foreach_lerp_(averages, [parameters[name].detach() for name in self.buffer_names], 1 - decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        parameters = dict(model.named_parameters())
        trained = {name: parameters[name].detach().clone() for name in self.buffer_names}
        self._copy(model, {name: getattr(self, place) for name, place in self.buffer_names.items()})
        try:
            yield
        finally:
            self._copy(model, trained)

    @staticmethod
    @torch.no_grad()
    def _copy(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name])
