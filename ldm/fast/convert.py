"""Copies of published layers that compute the same with less work (docs/speed.md has the proofs).

They share the weights of the published layers where dtype and memory layout allow, and are for inference only."""

from __future__ import annotations

import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.fast.onednn import linear
from ldm.fast.winograd import WinogradConv2d
from ldm.modules.diffusionmodules.util import Upsample


class FastLinear(nn.Linear):
    """An nn.Linear that shares another one's weights and runs in the faster of two libraries; no gradients."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def convert(
    module: nn.Module, dtype: torch.dtype | None = None, layout: torch.memory_format = torch.contiguous_format
) -> nn.Module:
    """A copy of the module in which fast layers replace nn.Linear and nn.Conv2d; no gradients.

    dtype: of its weights and buffers; None keeps each one's own. layout: memory format of convolutions' weights.
    Weights that already have this dtype and layout are shared, not copied."""
    converted: dict[int, Tensor] = {}  # id of a tensor -> its copy: deepcopy then takes that instead of its own
    for parameter in module.parameters():
        weight = parameter.detach().to(dtype or parameter.dtype)
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=layout)
        converted[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    for buffer in module.buffers():  # such as the means and variances of a ResNet's BatchNorm
        if buffer.is_floating_point():
            converted[id(buffer)] = buffer.to(dtype or buffer.dtype)
    return replace_layers(copy.deepcopy(module, converted))


def replace_layers(module: nn.Module) -> nn.Module:
    """The fast layer for an nn.Linear or for a convolution that WinogradConv2d supports. Any other module is returned
    itself, with its children replaced in place."""
    if type(module) is nn.Linear:
        return FastLinear(module)
    if WinogradConv2d.supports(module):
        return WinogradConv2d(module)
    for name, child in module.named_children():
        setattr(module, name, replace_layers(child))
    return module


class PhaseUpsample(nn.Module):
    """Upsample (nearest by 2, then a 3x3 convolution) as four 2x2 convolutions of the small picture.

    | variable   | symbol                       |
    |------------|------------------------------|
    | w0, w1, w2 | rows of the 3x3 kernel       |
    | a, b       | row and column phase, 0 or 1 |

    With rows x[i] of the small picture, the rows y of the large one are (columns likewise)

        y[2i]     = w0 x[i-1] + (w1 + w2) x[i]
        y[2i + 1] = (w0 + w1) x[i] + w2 x[i+1]

    which is 16 products where there were 36. transposed: all phases as one 4x4 kernel of a transposed convolution of
    stride 2, which is faster channels last; else as one 2x2 convolution to the channels of all four phases."""

    def __init__(self, conv: nn.Conv2d, transposed: bool):
        super().__init__()
        kernel = conv.weight.detach()
        for dim in (2, 3):
            w0, w1, w2 = kernel.unbind(dim)
            kernel = torch.stack([w2, w1 + w2, w0 + w1, w0], dim)
        bias = conv.bias.detach()
        channels, out_channels = conv.in_channels, conv.out_channels
        if transposed:
            self.conv = nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1, device="meta")
            kernel = kernel.transpose(0, 1)
        else:
            self.conv = nn.Conv2d(channels, 4 * out_channels, 2, padding=1, device="meta")
            # phase a has the kernel's rows 3 - a - 2k
            kernel = rearrange(kernel.flip(2, 3), "o i (k a) (l b) -> (a b o) i k l", a=2, b=2)
            bias = bias.repeat(4)
        self.conv.weight = nn.Parameter(kernel.contiguous(), requires_grad=False)
        self.conv.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C',2h,2w)."""
        if isinstance(self.conv, nn.ConvTranspose2d):
            return self.conv(x)
        h, w = x.shape[-2:]
        phases = rearrange(self.conv(x), "n (a b o) h w -> n a b o h w", a=2, b=2)  # each of them (h+1, w+1)
        large = phases.new_empty(len(x), phases.shape[3], h, 2, w, 2)
        for a in (0, 1):
            for b in (0, 1):
                large[:, :, :, a, :, b] = phases[:, a, b, :, a : a + h, b : b + w]
        return rearrange(large, "n o h a w b -> n o (h a) (w b)")


def replace_upsampling(module: nn.Module, transposed: bool) -> None:
    """Replaces every Upsample inside the module by a PhaseUpsample, in place.

    To be called before the module is converted to half precision, so that the sums of weights are rounded only once."""
    for name, child in module.named_children():
        if isinstance(child, Upsample):
            setattr(module, name, PhaseUpsample(child.conv, transposed))
        else:
            replace_upsampling(child, transposed)
