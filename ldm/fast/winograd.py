"""Convolutions in float32 on a CPU from a quarter of the products (Winograd 1980; Lavin and Gray 2016).

| variable   | symbol                                                       |
|------------|--------------------------------------------------------------|
| r          | taps of the filter, in each dimension                        |
| m          | outputs of a tile, in each dimension                         |
| n          | inputs of a tile, n = m + r - 1                              |
| a, g, b    | A (m,n), G (n,r), B (n,n) of one dimension                   |

In one dimension a filter g of r taps gives m outputs y from n inputs d by n products instead of m r:

    y = A [(G g) * (B d)]

This is the multiplication of two polynomials by their values at n points, transposed; A, G and B consist of powers of
the points (derivation: docs/speed.md). In two dimensions it is applied along both: a tile of m x m outputs needs n^2
products per pair of channels instead of m^2 r^2, 36 instead of 144 for r = 3 and m = 4. Taken together for all channels
and tiles, they are n^2 matrix products."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# n -> its points, to which infinity is added. Those of n = 6 round half as much as the usual 0, 1, -1, 2, -2.
POINTS = {
    4: (0, 1, -1),
    5: (0.5, -0.5, 1.25, -1.25),
    6: (0, 0.75, -0.75, 1.5, -1.5),
}
# Measured on an AMD CPU with AVX2:
MIN_CHANNELS = 256  # layers with fewer channels gain little or nothing,
MIN_POSITIONS = 100  # and so do results with fewer positions
MAX_PAIRS_OF_LARGE_TILES = 1920 * 640  # more pairs of channels gain little from m = 4, and need four times the memory
BLOCK_SIZE = 160 * 1024  # channels times tiles in one matrix product, so that its inputs and outputs stay in the cache


@functools.cache
def transforms(m: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (m^2,n^2), G (n^2,r^2), B (n^2,n^2) for flattened two-dimensional tiles, float64."""
    n = m + r - 1
    points = np.array(POINTS[n], dtype=float)
    others = [np.delete(points, j) for j in range(n - 1)]
    infinity = np.eye(n)[-1]  # a polynomial's value there is its last coefficient
    a = np.vstack([np.vander(points, m, increasing=True), infinity[-m:]]).T
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    g = np.vstack([np.vander(points, r, increasing=True) / scale, infinity[-r:]])
    b = np.zeros((n, n))
    for j, roots in enumerate([*others, points]):
        b[j, : len(roots) + 1] = np.poly(roots)[::-1]
    return tuple(torch.from_numpy(np.kron(matrix, matrix)) for matrix in (a, g, b))


def transform_weight(weight: Tensor, m: int) -> Tensor:
    """G g for all pairs of channels: weight (C',C,r,r) -> (n^2,C',C)."""
    _, g, _ = transforms(m, weight.shape[-1])
    return torch.mm(g.to(weight.dtype), weight.flatten(2).flatten(0, 1).T).view(-1, *weight.shape[:2])


def winograd_conv2d(x: Tensor, weight: Tensor, m: int, r: int, padding: int = 0) -> Tensor:
    """x (B,C,h,w), weight (n^2,C',C) of transform_weight -> (B,C',h',w') with h' = h + 2 padding + 1 - r."""
    a, _, b = (matrix.to(x.dtype) for matrix in transforms(m, r))
    n, overlap = m + r - 1, r - 1
    batch, channels = x.shape[:2]
    out_channels = weight.shape[1]
    height, width = (size + 2 * padding - overlap for size in x.shape[2:])
    rows, columns = -(-height // m), -(-width // m)  # of tiles; the last ones may be larger than what is left
    right = columns * m + overlap - padding - x.shape[3]  # padding that completes the last column of tiles
    y = x.new_empty(batch, out_channels, rows, m, columns, m)
    rows_per_block = max(BLOCK_SIZE // (channels * batch * columns), 1)
    for top in range(0, rows, rows_per_block):
        count = min(rows_per_block, rows - top)
        start, end = top * m - padding, (top + count) * m + overlap - padding
        strip = x[:, :, max(start, 0) : end]
        strip = F.pad(strip, (padding, right, max(-start, 0), max(end - x.shape[2], 0)))
        d = strip.unfold(2, n, m).unfold(3, n, m).permute(4, 5, 1, 0, 2, 3)  # (n,n,C,B,count,columns)
        b_d = torch.mm(b, d.reshape(n * n, -1)).view(n * n, channels, -1)
        channels_per_block = max(BLOCK_SIZE // b_d.shape[2], 1)
        for first in range(0, out_channels, channels_per_block):
            products = torch.bmm(weight[:, first : first + channels_per_block], b_d)
            tiles = torch.mm(a, products.view(n * n, -1)).view(m, m, -1, batch, count, columns)
            y[:, first : first + channels_per_block, top : top + count] = tiles.permute(3, 2, 4, 0, 5, 1)
    return y.view(batch, -1, rows * m, columns * m)[:, :, :height, :width]


class WinogradConv2d(nn.Conv2d):
    """An nn.Conv2d that shares another one's weights and takes fewer products where that is faster; no gradients. conv:
    one that `supports` accepts.

    keep_transformed: keep the transformed weight, which takes n^2 / r^2 times the weight's memory. For a layer that
    runs in every step; its weight must not change afterwards."""

    transformed_weight: Tensor | None

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, padding=1, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.keep_transformed = False
        self.register_buffer("transformed_weight", None, persistent=False)

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """Whether the module is an nn.Conv2d with a kernel of 2x2 or 3x3, stride 1 and zero padding of 1."""
        return (
            type(module) is nn.Conv2d
            and module.kernel_size in ((2, 2), (3, 3))
            and module.stride == module.padding == module.dilation == (1, 1)
            and (module.groups, module.padding_mode) == (1, "zeros")
        )

    @property
    def tile_size(self) -> int | None:
        """m, or None if tiles are not faster for this many channels."""
        if min(self.in_channels, self.out_channels) < MIN_CHANNELS:
            return None
        if self.in_channels * self.out_channels <= MAX_PAIRS_OF_LARGE_TILES:
            return 4
        return 2 if self.kernel_size == (3, 3) else None

    def forward(self, x: Tensor, padding: int = 1) -> Tensor:
        """(B,C,h,w) -> (B,C',h',w') with h' = h + 2 padding + 1 - r. padding: 0 for an x that is padded already."""
        m, r = self.tile_size, self.kernel_size[0]
        height, width = (size + 2 * padding + 1 - r for size in x.shape[2:])
        if not m or x.device.type != "cpu" or x.dtype != torch.float32 or height * width < MIN_POSITIONS:
            return F.conv2d(x, self.weight, self.bias, padding=padding)
        weight = self.transformed_weight
        if weight is None:
            weight = transform_weight(self.weight, m)
            if self.keep_transformed:
                self.transformed_weight = weight
        y = winograd_conv2d(x, weight, m, r, padding)
        return y if self.bias is None else y.add_(self.bias[:, None, None])
