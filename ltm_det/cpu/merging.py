"""How mergers run on the CPU: some windows at a time.

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels.
"""

from collections.abc import Callable

import torch
import torch.utils.checkpoint as cp
from torch import Tensor

from ltm_det.cpu import pieces, threads
from ltm_det.cpu.door import Executor
from ltm_det.merging import LTM, NO_CUES, Cues, Merger, Merging, Pool, Random

# Tensors of a token's size that a merger has at once, about.
TENSORS = 4


def run(
    merger: Merger,
    x: Tensor,
    state: Tensor | None = None,
    valid: Tensor | None = None,
    cues: Cues = NO_CUES,
) -> tuple[Merging, Tensor | None]:
    """``merger(x, state, valid, cues)`` of x (B, W, N, C), see :meth:`Merger.forward`.

    What is merged in pieces is restored in pieces, too. In training the mask is computed again in
    the backward pass, and nothing is kept of what led to it.
    """
    if torch.is_grad_enabled():
        return cp.checkpoint(merger, x, state, valid, cues, use_reentrant=False)
    if any(cue is not None for cue in cues):
        return merger(x, state, valid, cues)
    b, w, n, c = x.shape
    size = max(1, pieces.PIECE // (TENSORS * n * c))
    spans, windows = pieces.cuts(b * w, size), x.flatten(0, 1)
    reals = valid if valid is None or valid.ndim == 2 else valid.flatten(0, 1)
    states = None if state is None else state.flatten(0, 1)

    def decide(i: int) -> tuple[Merging, Tensor | None]:
        start, stop = spans[i]
        real = pieces.rows(reals, start, stop, b * w)
        real = None if real is None or real.all() else real
        own = None if states is None else states[start:stop]
        return merger(windows[start:stop], own, real)

    mergings, found = zip(*threads.each(decide, len(spans)))

    def each(function: Callable[..., Tensor], tokens: int, *tensors: Tensor) -> Tensor:
        """(B, W, tokens, C), what ``function`` makes of each merging and its rows of tensors."""
        tensors = tuple(t.flatten(0, 1) for t in tensors)
        out = tensors[0].new_empty(b * w, tokens, tensors[0].shape[-1])

        def compute(i: int) -> None:
            start, stop = spans[i]
            out[start:stop] = function(mergings[i], *(t[start:stop] for t in tensors))

        threads.run(compute, len(spans))
        return out.unflatten(0, (b, w))

    def joined(name: str) -> Tensor | None:
        """(B, W, P), a field of the mergings, zero where one has none."""
        parts = [getattr(merging, name) for merging in mergings]
        if all(part is None for part in parts):
            return None
        out = x.new_zeros(b * w, merger.tokens)
        for part, (start, stop) in zip(parts, spans):
            if part is not None:
                out[start:stop] = part
        return out.unflatten(0, (b, w))

    whole = Merging(
        merge=lambda x: each(lambda merging, x: merging.merge(x), merger.tokens, x),
        unmerge=lambda y: each(lambda merging, y: merging.unmerge(y), n, y),
        key_bias=joined("key_bias"),
        size=joined("size"),
        average=lambda x: each(Merging.mean_of, merger.tokens, x),
        restore=lambda x, change: each(Merging.update, n, x, change),
    )
    return whole, None if found[0] is None else torch.cat(found).unflatten(0, (b, w))


def serves(merger: Merger) -> bool:
    """In training for its gradients, else in evaluation mode: in pieces noise would be another."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or not merger.training


EXECUTOR = Executor(run, serves)
EXECUTORS = {kind: EXECUTOR for kind in (LTM, Pool, Random)}
