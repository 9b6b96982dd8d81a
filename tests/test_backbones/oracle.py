"""What the slow oracles of the backbones share: windows and mergers, one token at a time."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ltm_det.merging import Merger, Pool
from tests.test_merging.oracle import Matrices, ltm_oracle, pool_oracle


def windows_of(
    places: Iterable[tuple[int, int]], m: int
) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """For each window of the grid, the tokens that are there: (index in the window, y, x)."""
    found = {}
    for y, x in places:
        found.setdefault((y // m, x // m), []).append((y % m * m + x % m, y, x))
    return found


def decide(
    merger: Merger,
    features: Tensor,
    real: list[int],
    previous: Tensor | None = None,
    sizes: list[float] | None = None,
) -> Matrices:
    """The matrices of one window, of which only real tokens are given, and what each counts for."""
    m = merger.window
    valid = [n in real for n in range(m * m)]
    if isinstance(merger, Pool):
        return pool_oracle(m, merger.tokens, valid)
    x = torch.zeros(m * m, features.shape[-1])
    x[real] = features
    start = previous if merger.chained else merger.initial_logits
    own = (merger.detail_in, merger.detail_out)
    pull = (merger.log_affinity.exp(), merger.rounds)
    if sizes is not None:
        given = dict(zip(real, sizes, strict=True))
        sizes = [given.get(n, 1.0) for n in range(m * m)]
    mask = (merger.mask, merger.temperature)
    assert merger.proportional
    return ltm_oracle(x, merger.step, start, m, *mask, valid, *pull, own, sizes)
