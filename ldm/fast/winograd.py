"""Convolutions in float32 on a CPU from a quarter of the products (Winograd 1980; Lavin and Gray 2016).

In one dimension, m outputs y of a filter g of r taps see n = m + r - 1 inputs d:

    y = A [(G g) * (B d)],   A (m,n), G (n,r), B (n,n)

takes n products instead of m r. (This is multiplication of polynomials, transposed, by their values at n points, of
whose powers the matrices consist: docs/speed.md.) In two dimensions it is done along both: tiles of m x m outputs need
n^2 products for each pair of channels instead of m^2 r^2, 36 instead of 144 for r = 3 and m = 4. Of all channels and
tiles they are n^2 matrix products."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

POINTS = {  # by n, and infinity; the usual 0, 1, -1, 2, -2 round twice as much as those of n = 6
    4: (0, 1, -1),
    5: (0.5, -0.5, 1.25, -1.25),
    6: (0, 0.75, -0.75, 1.5, -1.5),
}
# The rest as measured on an AMD CPU with AVX2:
CHANNELS, PLACES = 256, 100  # with fewer channels, or fewer places in the result, tiles save little or nothing
MANY = 1920 * 640  # pairs of channels: with more, m = 4 would save little and take four times the weights' memory
PIECE = 160 * 1024  # channels times tiles at once, so that what lies between the products stays in the cache


@functools.cache
def transforms(m: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (m^2,n^2), G (n^2,r^2), B (n^2,n^2) of flattened tiles, float64."""
    n = m + r - 1
    points = np.array(POINTS[n], dtype=float)
    others = [np.delete(points, j) for j in range(n - 1)]
    infinity = np.eye(n)[-1]  # where a polynomial's value is its last coefficient
    a = np.vstack([np.vander(points, m, increasing=True), infinity[-m:]]).T
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    g = np.vstack([np.vander(points, r, increasing=True) / scale, infinity[-r:]])
    b = np.zeros((n, n))
    for j, roots in enumerate([*others, points]):
        b[j, : len(roots) + 1] = np.poly(roots)[::-1]
    return tuple(torch.from_numpy(np.kron(matrix, matrix)) for matrix in (a, g, b))


def transformed(weight: Tensor, m: int) -> Tensor:
    """(C',C,r,r) -> (n^2,C',C)."""
    g = transforms(m, weight.shape[-1])[1].to(weight.dtype)
    return torch.mm(g, weight.flatten(2).flatten(0, 1).T).view(-1, *weight.shape[:2])


def winograd_conv2d(x: Tensor, weight: Tensor, m: int, r: int, padding: int = 0) -> Tensor:
    """x (B,C,h,w), weight (n^2,C',C) of `transformed` -> (B,C',h',w'), h' = h + 2 padding + 1 - r."""
    a, _, b = (matrix.to(x.dtype) for matrix in transforms(m, r))
    n, more = m + r - 1, r - 1
    batch, channels = x.shape[:2]
    height, width = (size + 2 * padding - more for size in x.shape[2:])
    rows, columns = -(-height // m), -(-width // m)  # of tiles, the last ones perhaps not whole
    right = columns * m + more - padding - x.shape[3]
    y = x.new_empty(batch, weight.shape[1], rows, m, columns, m)
    many = max(PIECE // (channels * batch * columns), 1)
    for top in range(0, rows, many):
        count = min(many, rows - top)
        start, end = top * m - padding, (top + count) * m + more - padding
        piece = x[:, :, max(start, 0) : end]
        piece = F.pad(piece, (padding, right, max(-start, 0), max(end - x.shape[2], 0)))
        piece = piece.unfold(2, n, m).unfold(3, n, m).permute(4, 5, 1, 0, 2, 3)  # (n,n,C,B,count,columns)
        values = torch.mm(b, piece.reshape(n * n, -1)).view(n * n, channels, -1)
        at_once = max(PIECE // values.shape[2], 1)
        for first in range(0, weight.shape[1], at_once):
            products = torch.bmm(weight[:, first : first + at_once], values)
            tiles = torch.mm(a, products.view(n * n, -1)).view(m, m, -1, batch, count, columns)
            y[:, first : first + at_once, top : top + count] = tiles.permute(3, 2, 4, 0, 5, 1)
    return y.view(batch, -1, rows * m, columns * m)[:, :, :height, :width]


class WinogradConv2d(nn.Conv2d):
    """What `convert` makes of nn.Conv2d with kernels of 2x2 or 3x3, stride 1 and padding 1; no gradients.

    keeps: the transformed weight, n^2 / r^2 times as large, for what runs in every step; the weight must not change
    then."""

    keeps = False
    kept: Tensor | None = None

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether a module is one of those."""
        return (
            type(conv) is nn.Conv2d
            and conv.kernel_size in ((2, 2), (3, 3))
            and conv.stride == conv.padding == conv.dilation == (1, 1)
            and (conv.groups, conv.padding_mode) == (1, "zeros")
        )

    @property
    def m(self) -> int | None:
        """Of the tiles; None: they would not pay."""
        if min(self.in_channels, self.out_channels) < CHANNELS:
            return None
        if self.in_channels * self.out_channels <= MANY:
            return 4
        return 2 if self.kernel_size == (3, 3) else None

    def forward(self, x: Tensor, padding: int = 1) -> Tensor:
        """(B,C,h,w) -> (B,C',h',w'), h' = h + 2 padding + 1 - r. padding 0: x has been padded."""
        m, r = self.m, self.kernel_size[0]
        height, width = (size + 2 * padding + 1 - r for size in x.shape[2:])
        if not m or x.device.type != "cpu" or x.dtype != torch.float32 or height * width < PLACES:
            return F.conv2d(x, self.weight, self.bias, padding=padding)
        weight = transformed(self.weight, m) if self.kept is None else self.kept
        if self.keeps:
            self.kept = weight
        y = winograd_conv2d(x, weight, m, r, padding)
        return y if self.bias is None else y.add_(self.bias[:, None, None])
