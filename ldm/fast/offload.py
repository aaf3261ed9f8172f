"""Networks that are on the GPU only while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def on_device(device: torch.device, *networks: nn.Module) -> Iterator[None]:
    """Inside, the networks' weights and buffers are on the device. Afterwards they are the same tensors as before;
    nothing is copied back, unlike with module.to()."""
    modules = [module for network in networks for module in network.modules()]
    parameters = [(module, name, p) for module in modules for name, p in module.named_parameters(recurse=False)]
    buffers = [(module, name, buffer) for module in modules for name, buffer in module.named_buffers(recurse=False)]
    try:
        for module, name, parameter in parameters:
            setattr(module, name, nn.Parameter(parameter.detach().to(device), requires_grad=False))
        for module, name, buffer in buffers:
            setattr(module, name, buffer.to(device))
        yield
    finally:
        for module, name, tensor in (*parameters, *buffers):
            setattr(module, name, tensor)
