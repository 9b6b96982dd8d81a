"""Merging on the CPU, some windows at a time in inference, see :mod:`.pieces`.

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint as cp
from torch import Tensor

from ltm_det.cpu import pieces
from ltm_det.merging import Merger, Merging

# Tensors of a token's size that a merger has at once, about.
TENSORS = 4


def merge(
    merger: Merger, x: Tensor, state: Any, valid: Tensor | None, with_cp: bool = False
) -> tuple[Merging, Any]:
    """``merger(x, state, valid)`` of x (B, W, N, C), see :meth:`Merger.forward`.

    What goes in pieces merges and restores in pieces, too. Its state is the list of theirs. In
    training the mask is computed again in the backward pass, as elsewhere with ``with_cp``, and
    nothing is kept of what led to it.
    """
    if merger.training or pieces.watched(merger) or not pieces.inference(x):
        if isinstance(state, list):
            state = torch.cat(state).unflatten(0, x.shape[:2])
        if torch.is_grad_enabled() and (with_cp or pieces.applies(x)):
            return cp.checkpoint(merger, x, state, valid, use_reentrant=False)
        return merger(x, state, valid)
    b, w, n, c = x.shape
    size = max(1, pieces.PIECE // (TENSORS * n * c))
    cuts = pieces.cuts(b * w, size)
    if state is None:
        state = [None] * len(cuts)
    elif not isinstance(state, list):
        state = [state.flatten(0, 1)[start:stop] for start, stop in cuts]
    windows, mergings = x.flatten(0, 1), []
    for i, (start, stop) in enumerate(cuts):
        real = pieces.rows(valid, start, stop, b * w)
        real = None if real is None or real.all() else real
        merging, state[i] = merger(windows[start:stop], state[i], real)
        mergings.append(merging)

    def each(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """(B, W, ...), what ``function`` makes of each merging and its rows of the tensors."""
        each_merging = iter(mergings)
        out = pieces.in_pieces(
            lambda *rows: function(next(each_merging), *rows),
            size,
            [t.flatten(0, 1) for t in tensors],
        )
        return out.unflatten(0, (b, w))

    def joined(name: str) -> Tensor | None:
        """(B, W, P), a field of the mergings, zero where one has none."""
        parts = [getattr(merging, name) for merging in mergings]
        if all(part is None for part in parts):
            return None
        out = x.new_zeros(b * w, merger.tokens)
        for part, (start, stop) in zip(parts, cuts):
            if part is not None:
                out[start:stop] = part
        return out.unflatten(0, (b, w))

    whole = Merging(
        merge=lambda x: each(lambda merging, x: merging.merge(x), x),
        unmerge=lambda y: each(lambda merging, y: merging.unmerge(y), y),
        key_bias=joined("key_bias"),
        size=joined("size"),
        average=lambda x: each(Merging.mean_of, x),
        restore=lambda x, change: each(Merging.update, x, change),
    )
    return whole, None if state[0] is None else state
