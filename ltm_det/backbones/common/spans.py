"""Which blocks of a stage run on the same merged tokens, and what merges them.

Shapes: N = M * M tokens in a window, P kept tokens, C channels, M side of the dense window, k side
of the merged window.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

from ltm_det.merging import Merger, build_merger


class Span(NamedTuple):
    """Consecutive blocks ``start`` to ``stop`` - 1 that run on the same k x k tokens a window."""

    start: int
    stop: int
    side: int


def spans_of(sides: list[int]) -> list[Span]:
    spans, start = [], 0
    for side, run in groupby(sides):
        stop = start + len(list(run))
        spans.append(Span(start, stop, side))
        start = stop
    return spans


def merger_chain(
    dim: int, window: int, tokens: list[int], options: Mapping[str, Any], depths: list[float]
) -> list[Merger | None]:
    """A merger for each entry of ``tokens``, None where it is all of the window's; those of equal P
    follow on from one another."""
    mergers, previous = [], None
    for kept, depth in zip(tokens, depths, strict=True):
        if kept == window**2:
            mergers.append(None)
            continue
        place = dict(window=window, tokens=kept, chained=kept == previous, depth=depth)
        mergers.append(build_merger(dim=dim, **place, **options))
        previous = kept
    return mergers
