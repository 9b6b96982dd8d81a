"""Windows and tokens some at a time, through as many layers as there are without a look at others.

Large tensors are new memory at each allocation, whose first touch costs many times what is then
computed in it. So tokens, whose MLPs do not depend on each other, and windows, whose attentions do
not, are taken a few at a time, in pieces that stay in the cache, each on one thread
(:mod:`.threads`). In training, where this pays (:mod:`.products`), nothing is kept of a piece but
its input: the rest is computed again in the backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ltm_det.cpu import threads

# Numbers in the largest tensor of a piece: 3 MB.
PIECE = 3 << 18

Tensors = Sequence[Tensor | None]


def in_pieces(
    function: Callable[..., Tensor],
    size: int,
    cut: Tensors,
    rest: Tensors = (),
    order: Tensor | None = None,
    row: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``function`` of ``size`` rows of the tensors ``cut`` at a time, and of all of ``rest``.

    Args:
        function: Its result has a row for each row of the pieces.
        size: Rows in a piece, at most.
        cut: The first has all rows; the others too, or rows that repeat themselves.
        rest: Whole.
        order: (L,), the rows of the first of ``cut`` are windows (N, C), and of each L tokens in
            them these are taken in this order and put back to where they were. None: as they are.
        row: Shape of a row of the result. None: that of the first of ``cut``.
        out: Where the result goes. None: to a tensor of its own.
    """
    first = cut[0]
    assert first is not None
    total = len(first)
    if out is None:
        out = first.new_empty(total, *(first.shape[1:] if row is None else row))
    spans = cuts(total, size)

    def compute(i: int) -> None:
        start, stop = spans[i]
        others = (rows(t, start, stop, total) for t in cut[1:])
        put(out, order, start, stop, function(take(first, order, start, stop), *others, *rest))

    threads.run(compute, len(spans))
    return out


def cuts(total: int, size: int) -> list[tuple[int, int]]:
    """Where pieces of at most ``size`` of so many rows, about equal, start and stop."""
    count = min(total, threads.shared(-(-total // size)))
    size = -(-total // count)
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def rows(x: Tensor | None, start: int, stop: int, total: int) -> Tensor | None:
    """Rows of one that has all, or of one that repeats itself until there are ``total``."""
    if x is None or len(x) == total:
        return None if x is None else x[start:stop]
    return x[torch.arange(start, stop) % len(x)]


def take(x: Tensor, order: Tensor | None, start: int, stop: int) -> Tensor:
    """Rows of x, of windows those of their tokens in this order, see :func:`in_pieces`."""
    if order is None:
        return x[start:stop]
    at = _at(order, start * x.shape[1], stop * x.shape[1])
    return x.flatten(0, 1).index_select(0, at).view(-1, *x.shape[1:])


def put(x: Tensor, order: Tensor | None, start: int, stop: int, piece: Tensor) -> None:
    """What `take` takes becomes ``piece``."""
    if order is None:
        x[start:stop] = piece
    else:
        at = _at(order, start * x.shape[1], stop * x.shape[1])
        x.view(-1, *x.shape[2:]).index_copy_(0, at, piece.flatten(0, 1))


def _at(order: Tensor, start: int, stop: int) -> Tensor:
    """Indices ``start`` to ``stop`` - 1 of an order that goes on in the same way."""
    if stop <= len(order):
        return order[start:stop]
    index = torch.arange(start, stop)
    return order[index % len(order)] + index // len(order) * len(order)


class Recomputed(torch.autograd.Function):
    """:func:`in_pieces` with gradients; keeps its arguments alone. What repeats itself has none."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable,
        size: int,
        order: Tensor | None,
        row: Sequence[int] | None,
        cut: int,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.function, ctx.size, ctx.order, ctx.cut = function, size, order, cut
        ctx.save_for_backward(*tensors)
        return in_pieces(function, size, tensors[:cut], tensors[cut:], order, row)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, order, total = ctx.saved_tensors, ctx.order, len(gradient)
        learning = [i for i, need in enumerate(ctx.needs_input_grad[5:]) if need]
        if _batched(gradient):
            return None, None, None, None, None, *_whole(ctx, tensors, gradient, learning)
        spans, again = cuts(total, ctx.size), torch.is_grad_enabled()
        found: list[Any] = [None] * len(tensors)
        for i in learning:
            found[i] = torch.zeros_like(tensors[i])

        def compute(piece: int) -> Sequence[Tensor]:
            start, stop = spans[piece]
            own: list[Any] = [take(tensors[0], order, start, stop)]
            own += [rows(t, start, stop, total) for t in tensors[1 : ctx.cut]]
            own += tensors[ctx.cut :]
            of_out = take(gradient, order, start, stop)
            for i in learning:
                own[i] = own[i].view_as(own[i]) if again else own[i].detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.function(*own)
            return torch.autograd.grad(out, [own[i] for i in learning], of_out, create_graph=again)

        for (start, stop), gradients in zip(spans, threads.each(compute, len(spans))):
            for i, value in zip(learning, gradients, strict=True):
                if i >= ctx.cut:
                    found[i] += value
                else:
                    put(found[i], order if i == 0 else None, start, stop, value)
        return None, None, None, None, None, *found


def _batched(gradient: Tensor) -> bool:
    """Whether it stands for many, as in ``torch.autograd.grad(..., is_grads_batched=True)``."""
    of = torch._C._functorch
    return of.is_batchedtensor(gradient) or of.is_legacy_batchedtensor(gradient)


def _whole(ctx: Any, tensors: Tensors, gradient: Tensor, learning: Sequence[int]) -> list[Any]:
    """Gradients of many results at once: all rows in one piece, here, into no memory of ours."""
    own: list[Any] = list(tensors)
    total, order = len(gradient), ctx.order
    for i in learning:
        own[i] = own[i].detach().requires_grad_()
    with torch.enable_grad():
        others = (rows(t, 0, total, total) for t in own[1 : ctx.cut])
        out = ctx.function(take(own[0], order, 0, total), *others, *own[ctx.cut :])
        if order is not None:
            back = _at(order, 0, total * own[0].shape[1]).argsort()
            out = out.flatten(0, 1)[back].view(own[0].shape)
    gradients = iter(torch.autograd.grad(out, [own[i] for i in learning], gradient))
    return [next(gradients) if i in learning else None for i in range(len(own))]


def run(
    function: Callable[..., Tensor],
    size: int,
    cut: Tensors,
    rest: Tensors = (),
    order: Tensor | None = None,
    row: Sequence[int] | None = None,
) -> Tensor:
    """:func:`in_pieces`, with gradients where there are any to be had."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*cut, *rest)):
        return Recomputed.apply(function, size, order, row, len(cut), *cut, *rest)
    with torch.no_grad():
        return in_pieces(function, size, cut, rest, order, row)
