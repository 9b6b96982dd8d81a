"""Convolutions of 3 x 3 on the CPU by Winograd's filtering, in pieces that stay in the cache.

Of F(4 x 4, 3 x 3) in Lavin and Gray, arXiv 1509.09308: a tile of 4 x 4 results Y comes of 6 x 6
inputs d and the kernel g as

    Y = A^T [(G g G^T) * (B^T d B)] A,

36 products for each pair of channels in the place of 144. Both sides of each transform make one
matrix here, the Kronecker product of its two factors, and the products of a piece 36 matrix
products. What rounding does is of the size of a direct convolution's.

Shapes: B images, C and D channels, H x W pixels, T tiles in a piece.
"""

import math
from functools import cache
from queue import Empty, SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from ltm_det.cpu import pieces, threads

SIDE, INPUT = 4, 6  # of a tile, of what it reads
# Fewer tiles than this, for each thread, are done before the kernel is transformed.
FEW_TILES = 64
# With fewer channels the transforms cost more than the products that are spared.
FEW_CHANNELS = 192
# Share of the tiles' area that has to lie on the map.
FULL = 0.76
# Of a matrix that is transformed, taken at a time.
COLUMNS = 8192


class Transforms(NamedTuple):
    """Of inputs (36, 36), of kernels (36, 9), back to results (16, 36)."""

    inputs: Tensor
    kernel: Tensor
    results: Tensor


@cache
def transforms() -> Transforms:
    """In float64, as of the points 0, 1, -1, 2, -2 and infinity."""
    inputs = [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
    kernel = [
        [6, 0, 0],
        [-4, -4, -4],
        [-4, 4, -4],
        [1, 2, 4],
        [1, -2, 4],
        [0, 0, 24],
    ]  # times 1 / 24
    results = [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
    once = (torch.tensor(matrix, dtype=torch.float64) for matrix in (inputs, kernel, results))
    of_inputs, of_kernel, of_results = (torch.kron(matrix, matrix) for matrix in once)
    return Transforms(of_inputs, of_kernel / 24**2, of_results)


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of stride 1 and padding 1 had better go this way."""
    images, _, height, width = x.shape
    tiles = -(-height // SIDE) * -(-width // SIDE)
    return (
        weight.shape[2:] == (3, 3)
        and weight.dtype == torch.float32
        and min(weight.shape[:2]) >= FEW_CHANNELS
        and images * tiles >= FEW_TILES * threads.shared(1)
        and height * width >= FULL * tiles * SIDE**2
    )


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)``, without gradients.

    Args:
        x: (B, C, H, W), fastest where channels come last in memory.
        weight: (D, C, 3, 3).
        bias: (D,) or None.
        relu: Whether a ReLU follows.

    Returns:
        (B, D, H, W), of which channels come last in memory.
    """
    (images, channels, height, width), out_channels = x.shape, len(weight)
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    into, of_kernel, back = (matrix.to(x.dtype) for matrix in transforms())
    kernel = of_kernel @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    kernel = kernel.view(INPUT**2, channels, out_channels)

    x = x.permute(0, 2, 3, 1)
    out = x.new_empty(images, height, width, out_channels)
    size = max(1, pieces.PIECE // (INPUT**2 * max(channels, out_channels)))
    spans = cuts(images, rows, columns, size)
    spaces = SimpleQueue[Workspace]()

    def compute(i: int) -> None:
        try:
            space = spaces.get_nowait()
        except Empty:
            space = Workspace(x)
        own, (first, last) = spans[i]
        shape = own.stop - own.start, last - first, columns
        top, bottom = SIDE * first - 1, SIDE * last + 1  # of what is read
        padded = space("map", shape[0], bottom - top, SIDE * columns + 2, channels).zero_()
        seen = slice(max(top, 0), min(bottom, height))
        padded[:, seen.start - top : seen.stop - top, 1 : width + 1] = x[own, seen]
        tiles = padded.unfold(1, INPUT, SIDE).unfold(2, INPUT, SIDE)  # (n, rows, columns, C, 6, 6)
        count = math.prod(shape)
        inputs = space("one", INPUT, INPUT, *shape, channels).copy_(tiles.permute(4, 5, 0, 1, 2, 3))
        inputs = transform(into, inputs, space("other", INPUT**2, count, channels))
        products = space("one", INPUT**2, count, out_channels)
        torch.bmm(inputs, kernel, out=products)
        results = transform(back, products, space("other", SIDE**2, count, out_channels))
        if bias is not None:
            results += bias
        if relu:
            results.relu_()
        there = space("map", *shape[:2], SIDE, columns, SIDE, out_channels)
        there.copy_(results.view(SIDE, SIDE, *shape, -1).permute(2, 3, 0, 4, 1, 5))
        there = there.flatten(3, 4).flatten(1, 2)
        made = slice(SIDE * first, min(SIDE * last, height))
        out[own, made] = there[:, : made.stop - made.start, :width]
        spaces.put(space)

    threads.run(compute, len(spans))
    return out.permute(0, 3, 1, 2)


class Workspace:
    """Memory that is used again for each piece, since new memory costs more than what is computed
    in it; of one thread at a time."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.memory = like, dict[str, Tensor]()

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor in the memory of this name, whatever is there."""
        size = math.prod(shape)
        if name not in self.memory or len(self.memory[name]) < size:
            self.memory[name] = self.like.new_empty(size)
        return self.memory[name][:size].view(shape)


def transform(matrix: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """matrix @ x into ``out``, along the first dimensions; some columns at a time, since BLAS is
    half as fast where there are many."""
    x, flat = x.view(matrix.shape[1], -1), out.view(len(matrix), -1)
    for start in range(0, x.shape[1], COLUMNS):
        at = slice(start, start + COLUMNS)
        torch.mm(matrix, x[:, at], out=flat[:, at])
    return out


def cuts(images: int, rows: int, columns: int, size: int) -> list[tuple[slice, tuple[int, int]]]:
    """Pieces of about ``size`` tiles, which images and from which row of tiles to which: some rows
    of an image, or whole images if they are small."""
    if rows * columns >= size:
        count = threads.shared(-(-rows * columns // size))
        spans = pieces.cuts(rows, math.ceil(rows / min(count, rows)))
        return [(slice(i, i + 1), span) for i in range(images) for span in spans]
    whole = pieces.cuts(images, size // (rows * columns))
    return [(slice(*span), (0, rows)) for span in whole]
