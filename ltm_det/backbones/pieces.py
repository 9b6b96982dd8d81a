"""MLP and window attention on the CPU in float32: through oneDNN, in pieces that stay in the cache.

torch hands float32 linear layers to its BLAS library, which on many CPUs runs at half of the speed
of oneDNN, which torch has as well. And a tensor of more than 32 MB is new memory at each
allocation, whose first touch costs more than the product that fills it. So tokens, whose MLPs do
not depend on each other, and windows, whose attentions do not, are taken a few at a time. In
training nothing is kept of a piece but its input: the rest is computed again in the backward pass.

None of it while a graph is exported: that has torch's own operators alone.

Shapes: T tokens, V windows (of all images), N tokens in a window, C channels, nH heads.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

# Numbers in the largest tensor of a piece: 6 MB.
PIECE = 3 << 19

Tensors = Sequence[Tensor | None]

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

if HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def linear_flops(x: torch.Size, weight: torch.Size, *_, **__) -> int:
        """For torch's counter, which takes shapes, at two flops a multiply-accumulate."""
        return 2 * math.prod(x) * weight[0]


def applies(x: Tensor, *layers: nn.Module) -> bool:
    """Whether x (*, C) and these layers may go this way: plain ones in float32 on the CPU."""
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
        and not (torch.compiler.is_compiling() and torch.is_grad_enabled())
        and all(map(_plain, layers))
    )


def _plain(layer: nn.Module) -> bool:
    """A linear layer of torch or of mmcv, which nothing wraps or watches."""
    return (
        isinstance(layer, nn.Linear)
        and type(layer).__name__ == "Linear"
        and layer.weight.dtype == torch.float32
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
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
    """(T, C) to the same."""
    if torch.is_grad_enabled():
        return product(F.gelu(product(x, weight1, bias1)), weight2, bias2)
    return linear(linear(x, weight1, bias1, "gelu"), weight2, bias2)


def attention_piece(
    num_heads: int,
    scale: float,
    x: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """(V, N, C) to the same, see :func:`window_attention`."""
    v, n, c = x.shape
    heads = product(x, qkv, qkv_bias).view(v, n, 3, num_heads, -1)
    q, k, value = heads.permute(2, 0, 3, 1, 4)  # each (V, nH, N, C / nH)
    if mask is not None:
        mask = mask if mask.ndim == 4 else mask[:, None]
        bias = mask if bias is None else bias + mask
    elif bias is not None:
        bias = bias[None]
    x = F.scaled_dot_product_attention(q, k, value, bias, scale=scale)
    return product(x.transpose(1, 2).reshape(v, n, c), proj, proj_bias)


def in_pieces(function: Callable[..., Tensor], size: int, cut: Tensors, rest: Tensors) -> Tensor:
    """``function`` of ``size`` rows of the tensors ``cut`` at a time, and of all of ``rest``."""
    total = len(cut[0])
    if total <= size and all(t is None or len(t) == total for t in cut):
        return function(*cut, *rest)
    out = torch.empty_like(cut[0], memory_format=torch.contiguous_format)
    for start in range(0, total, size):
        stop = min(start + size, total)
        out[start:stop] = function(*(_rows(t, start, stop, total) for t in cut), *rest)
    return out


def _rows(x: Tensor | None, start: int, stop: int, total: int) -> Tensor | None:
    """Rows of one that has all, or of one that repeats itself until there are ``total``."""
    if x is None or len(x) == total:
        return None if x is None else x[start:stop]
    return x[torch.arange(start, stop) % len(x)]


class Recomputed(torch.autograd.Function):
    """:func:`in_pieces` with gradients; keeps its arguments alone. What repeats itself has none."""

    @staticmethod
    def forward(ctx: Any, function: Callable, size: int, cuts: int, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.size, ctx.cuts = function, size, cuts
        ctx.save_for_backward(*tensors)
        return in_pieces(function, size, tensors[:cuts], tensors[cuts:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs, tensors, cuts = ctx.needs_input_grad[3:], ctx.saved_tensors, ctx.cuts
        learning = [i for i, need in enumerate(needs) if need]
        found = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs)]
        total = len(gradient)
        for start in range(0, total, ctx.size):
            stop = min(start + ctx.size, total)
            own = [_rows(t, start, stop, total) for t in tensors[:cuts]] + [*tensors[cuts:]]
            for i in learning:
                own[i] = own[i].detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.function(*own)
            gradients = torch.autograd.grad(out, [own[i] for i in learning], gradient[start:stop])
            for i, value in zip(learning, gradients, strict=True):
                (found[i][start:stop] if i < cuts else found[i]).add_(value)
        return None, None, None, *found


def run(function: Callable[..., Tensor], size: int, cut: Tensors, rest: Tensors) -> Tensor:
    """:func:`in_pieces`, with gradients where there are any to be had."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*cut, *rest)):
        return Recomputed.apply(function, size, len(cut), *cut, *rest)
    with torch.no_grad():
        return in_pieces(function, size, cut, rest)


def _mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    size = max(1, PIECE // len(weight1))
    return run(mlp_piece, size, [x], [weight1, bias1, weight2, bias2])


def _attention(
    x: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor,
    num_heads: int,
    scale: float,
) -> Tensor:
    piece = partial(attention_piece, num_heads, scale)
    n = x.shape[1]
    size = max(1, PIECE // (n * max(len(qkv), num_heads * n)))
    return run(piece, size, [x, mask], [bias, qkv, qkv_bias, proj, proj_bias])


# For torch.compile: pieces inside are not seen. They have no gradients.
_mlp_op = torch.library.custom_op("ltm_det::mlp", _mlp, mutates_args=())
_mlp_op.register_fake(lambda x, *_: torch.empty_like(x))
_attention_op = torch.library.custom_op("ltm_det::window_attention", _attention, mutates_args=())
_attention_op.register_fake(lambda x, *_: torch.empty_like(x))


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """fc2(gelu(fc1(x))), (*, C) to the same."""
    run = _mlp_op if torch.compiler.is_compiling() else _mlp
    rows = x.reshape(-1, x.shape[-1])
    return run(rows, fc1.weight, fc1.bias, fc2.weight, fc2.bias).view(x.shape)


def window_attention(
    x: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    scale: float,
) -> Tensor:
    """Attention within windows with both projections, (V, N, C) to the same.

    Args:
        x: The windows' tokens.
        mask: Added to the logits, (V, N, N) or (V, 1, N), or (W, N, N) where V = B * W and it is
            the same for all images; with nH before N where heads differ. None for nothing.
        bias: (nH, N, N), added to the logits in all windows. None for nothing.
        qkv: C to 3C channels: queries, keys, values, each head by head.
        proj: C to C channels.
        num_heads: nH.
        scale: Of the logits.
    """
    run = _attention_op if torch.compiler.is_compiling() else _attention
    return run(x, mask, bias, qkv.weight, qkv.bias, proj.weight, proj.bias, num_heads, scale)
