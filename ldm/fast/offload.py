"""Networks that are on the GPU only while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def on_device(device: torch.device, *networks: nn.Module) -> Iterator[None]:
    """Inside, the networks' weights and buffers are on the device. Afterwards they are the tensors they were before;
    nothing is copied back."""
    modules = [module for network in networks for module in network.modules()]
    tables = [table for module in modules for table in (module._parameters, module._buffers)]
    before = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update({name: t.detach().to(device) for name, t in table.items() if t is not None})
        yield
    finally:
        for table, tensors in zip(tables, before, strict=True):
            table.update(tensors)
