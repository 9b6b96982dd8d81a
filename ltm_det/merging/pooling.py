"""Area pooling of a window onto fewer, equal cells: where LTM starts and Pool stays."""

import math

import torch
from torch import Tensor


def pooling_matrix(window: int, tokens: int) -> Tensor:
    """Share of each token's area that falls into each of ``tokens`` cells tiling the window.

    The window is cut into round(sqrt(P)) rows of cells of equal height, each row into cells of
    equal width, the first rows with one cell more where P does not divide evenly; with P = k * k
    this is the k x k grid. Rows of the result sum to one.

    Args:
        window: Side of the square window, in tokens.
        tokens: P, number of cells, from 1 to window * window.

    Returns:
        (N, P) in float64, N = window * window.
    """
    rows = math.floor(math.sqrt(tokens) + 0.5)
    columns = [tokens // rows + (r < tokens % rows) for r in range(rows)]
    height = _overlap(window, rows)
    cells = [
        torch.einsum("h,wc->hwc", height[:, r], _overlap(window, columns[r])).flatten(0, 1)
        for r in range(rows)
    ]
    return torch.cat(cells, dim=1)


def alive_cells(area: Tensor, valid: Tensor) -> Tensor:
    """Which cells hold a real token: (N, P) shares and (*, N) validity give boolean (*, P)."""
    return (valid.to(area.dtype) @ area) > 0


def _overlap(length: int, cells: int) -> Tensor:
    """(length, cells): length of the overlap of unit interval i with the j-th of equal cells."""
    unit = torch.arange(length, dtype=torch.float64)[:, None]
    edge = torch.arange(cells + 1, dtype=torch.float64) * length / cells
    return (torch.minimum(unit + 1, edge[1:]) - torch.maximum(unit, edge[:-1])).clamp(min=0)
