"""Layers on the CPU in float32 or bfloat16: through oneDNN, in pieces that stay in the cache.

torch hands float32 linear layers to its BLAS library, which on many CPUs runs at half of the speed
of oneDNN, which torch has as well. And large tensors are new memory at each allocation, whose first
touch costs many times what is then computed in it. So tokens, whose MLPs do not depend on each
other, and windows, whose attentions do not, are taken a few at a time, through as many layers as
there are without a look at other windows. In training nothing is kept of a piece but its input: the
rest is computed again in the backward pass.

None of it while a graph is exported: that has torch's own operators alone. What a backbone makes of
it: :mod:`.swin_pieces`, :mod:`.vit_pieces`, :mod:`.merge_pieces`.

Shapes: T tokens, V windows (of all images), N tokens in a window, C channels, nH heads.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

# Numbers in the largest tensor of a piece: 6 MB.
PIECE = 3 << 19
# Tokens in a window up to which attention is faster as two products and a softmax, most of all in
# training, than as one operator.
FEW = 128

Tensors = Sequence[Tensor | None]

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

HAS_BFLOAT16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()

if HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def linear_flops(x: torch.Size, weight: torch.Size, *_, **__) -> int:
        """For torch's counter, which takes shapes, at two flops a multiply-accumulate."""
        return 2 * math.prod(x) * weight[0]


def applies(x: Tensor, *layers: nn.Module) -> bool:
    """Whether x (*, C) and these layers may go this way: plain ones of its dtype on the CPU."""
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and HAS_BFLOAT16))
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
        and not (torch.compiler.is_compiling() and torch.is_grad_enabled())
        and all(_plain(layer, x.dtype) for layer in layers)
    )


def _plain(layer: nn.Module, dtype: torch.dtype) -> bool:
    """A linear layer of torch or of mmcv, or a layer norm, which nothing wraps or watches."""
    linear = isinstance(layer, nn.Linear) and type(layer).__name__ == "Linear"
    if not linear and type(layer) is not nn.LayerNorm:
        return False
    return layer.weight is not None and layer.weight.dtype == dtype and not watched(layer)


def inference(x: Tensor, *layers: nn.Module) -> bool:
    """Whether they go this way without gradients and without a graph."""
    unseen = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not unseen and applies(x, *layers)


def watched(module: nn.Module) -> bool:
    """Whether it, or a module in it, has hooks."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in module.modules()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none") -> Tensor:
    """As torch's; with act='gelu', its GELU. Without gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, act, [], "none")


class Linear(torch.autograd.Function):
    """:func:`linear` with gradients: (T, C), (D, C) and (D,) or None to (T, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = linear(gradient, weight.t())
        if ctx.needs_input_grad[1]:
            if len(weight) > x.shape[1]:  # fast where what is the product's weight is the larger
                of_weight = linear(x.t(), gradient.t()).t()
            else:
                of_weight = linear(gradient.t(), x.t())
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_x, of_weight, of_bias


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, (*, C) to (*, D)."""
    run = Linear.apply if torch.is_grad_enabled() else linear
    return run(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def mlp_piece(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """fc2(gelu(fc1(x))), (T, C) to the same."""
    if torch.is_grad_enabled():
        return product(F.gelu(product(x, weight1, bias1)), weight2, bias2)
    return linear(linear(x, weight1, bias1, "gelu"), weight2, bias2)


def attention_piece(
    num_heads: int,
    scale: float,
    x: Tensor,
    logits: Callable[[Tensor], Tensor | None],
    qkv: Tensor,
    qkv_bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Attention within windows, both projections included: (V, N, C) to the same.

    ``logits`` makes what is added to the logits of queries (V, nH, N, C / nH).
    """
    v, n, c = x.shape
    heads = product(x, qkv, qkv_bias).view(v, n, 3, num_heads, -1)
    heads = heads.permute(2, 0, 3, 1, 4)  # (3, V, nH, N, C / nH)
    if n <= FEW and x.dtype == torch.float32:
        q, k, value = heads.contiguous()
        weights, more = scale * (q @ k.transpose(-1, -2)), logits(q)
        x = (weights if more is None else weights + more).softmax(-1) @ value
    else:  # its softmax is in float32 whatever the dtype
        q, k, value = heads
        x = F.scaled_dot_product_attention(q, k, value, logits(q), scale=scale)
    return product(x.transpose(1, 2).reshape(v, n, c), proj, proj_bias)


def attention_size(n: int, num_heads: int, channels: int) -> int:
    """Windows in a piece whose widest layer has so many channels."""
    return max(1, PIECE // (n * max(channels, num_heads * n)))


def in_pieces(
    function: Callable[..., Tensor],
    size: int,
    cut: Tensors,
    rest: Tensors = (),
    order: Tensor | None = None,
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
        out: Where the result goes. None: to a tensor of its own.
    """
    for start, stop in cuts(len(cut[0]), size):
        own = take(cut[0], order, start, stop)
        others = (rows(t, start, stop, len(cut[0])) for t in cut[1:])
        piece = function(own, *others, *rest)
        if out is None:
            out = piece.new_empty(len(cut[0]), *piece.shape[1:])
        put(out, order, start, stop, piece)
    return out


def cuts(total: int, size: int) -> list[tuple[int, int]]:
    """Where pieces of at most ``size`` of so many rows, about equal, start and stop."""
    size = -(-total // -(-total // size))
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
        cut: int,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.function, ctx.size, ctx.order, ctx.cut = function, size, order, cut
        ctx.save_for_backward(*tensors)
        return in_pieces(function, size, tensors[:cut], tensors[cut:], order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs, tensors, order = ctx.needs_input_grad[4:], ctx.saved_tensors, ctx.order
        learning = [i for i, need in enumerate(needs) if need]
        found = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs)]
        total = len(gradient)
        for start, stop in cuts(total, ctx.size):
            own = [take(tensors[0], order, start, stop)]
            own += [rows(t, start, stop, total) for t in tensors[1 : ctx.cut]]
            own += tensors[ctx.cut :]
            for i in learning:
                own[i] = own[i].detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.function(*own)
            of_out = take(gradient, order, start, stop)
            gradients = torch.autograd.grad(out, [own[i] for i in learning], of_out)
            for i, value in zip(learning, gradients, strict=True):
                if i >= ctx.cut:
                    found[i].add_(value)
                else:
                    put(found[i], order if i == 0 else None, start, stop, value)
        return None, None, None, None, *found


def run(
    function: Callable[..., Tensor],
    size: int,
    cut: Tensors,
    rest: Tensors = (),
    order: Tensor | None = None,
) -> Tensor:
    """:func:`in_pieces`, with gradients where there are any to be had."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*cut, *rest)):
        return Recomputed.apply(function, size, order, len(cut), *cut, *rest)
    with torch.no_grad():
        return in_pieces(function, size, cut, rest, order)


def _mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    size = max(1, PIECE // len(weight1))
    return run(mlp_piece, size, [x], [weight1, bias1, weight2, bias2])


# For torch.compile: pieces inside are not seen. They have no gradients.
_mlp_op = torch.library.custom_op("ltm_det::mlp", _mlp, mutates_args=())
_mlp_op.register_fake(lambda x, *_: torch.empty_like(x))


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """fc2(gelu(fc1(x))), (*, C) to the same."""
    run = _mlp_op if torch.compiler.is_compiling() else _mlp
    rows = x.reshape(-1, x.shape[-1])
    return run(rows, fc1.weight, fc1.bias, fc2.weight, fc2.bias).view(x.shape)


def norm(x: Tensor, layer: nn.LayerNorm, out: Tensor) -> Tensor:
    """A layer norm of (B, L, C) into ``out``, both in any memory layout. Without gradients."""
    size = max(1, PIECE // x.shape[-1])
    for image, target in zip(x, out):
        in_pieces(layer, size, [image], out=target)
    return out
