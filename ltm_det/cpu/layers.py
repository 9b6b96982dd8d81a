"""What blocks of all families are made of: an MLP, attention within windows, a norm.

Shapes: T tokens, V windows (of all images), N tokens in a window, C channels, nH heads.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.cpu import pieces
from ltm_det.cpu.products import linear, product

# Tokens in a window up to which attention is faster as two products and a softmax, most of all in
# training, than as one operator.
FEW = 128


def mlp_piece(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """fc2(gelu(fc1(x))), (T, C) to the same."""
    if torch.is_grad_enabled():
        return product(F.gelu(product(x, weight1, bias1)), weight2, bias2)
    return linear(linear(x, weight1, bias1, gelu=True), weight2, bias2)


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
        weights, more = (scale * q) @ k.transpose(-1, -2), logits(q)
        x = (weights if more is None else weights.add_(more)).softmax(-1) @ value
    else:  # its softmax is in float32 whatever the dtype
        q, k, value = heads
        x = F.scaled_dot_product_attention(q, k, value, logits(q), scale=scale)
    return product(x.transpose(1, 2).reshape(v, n, c), proj, proj_bias)


def linear_in_pieces(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer, (T, C) to (T, D), some tokens at a time."""
    size = max(1, pieces.PIECE // max(layer.weight.shape))
    weights = [layer.weight, layer.bias]
    return pieces.run(product, size, [x], weights, row=(len(layer.weight),))


def attention_size(n: int, num_heads: int, channels: int) -> int:
    """Windows in a piece whose widest layer has so many channels."""
    return max(1, pieces.PIECE // (n * max(channels, num_heads * n)))


def _mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    size = max(1, pieces.PIECE // len(weight1))
    return pieces.run(mlp_piece, size, [x], [weight1, bias1, weight2, bias2])


# For torch.compile: pieces inside are not seen. They have no gradients.
_mlp_op = torch.library.custom_op("ltm_det::mlp", _mlp, mutates_args=())
_mlp_op.register_fake(lambda x, *_: torch.empty_like(x))


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """fc2(gelu(fc1(x))), (*, C) to the same."""
    run = _mlp_op if torch.compiler.is_compiling() else _mlp
    rows = x.reshape(-1, x.shape[-1])
    return run(rows, fc1.weight, fc1.bias, fc2.weight, fc2.bias).view(x.shape)


def norm(layer: nn.LayerNorm, x: Tensor, out: Tensor | None = None) -> Tensor:
    """A layer norm of (B, L, C), to a tensor whose memory is a map's, (B, C, L), or into ``out``.

    Without gradients.
    """
    if out is None:
        out = x.new_empty(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)
    size = max(1, pieces.PIECE // x.shape[-1])
    for image, target in zip(x, out):
        pieces.in_pieces(layer, size, [image], out=target)
    return out


def is_gelu(act: Any) -> bool:
    """Whether it is the exact one."""
    return type(act) is nn.GELU and act.approximate == "none"


def drops(*dropouts: nn.Module) -> bool:
    """Whether one of them drops something out now."""
    return any(d.training and getattr(d, "p", 0.0) > 0 for d in dropouts)


def unseen() -> bool:
    """Whether there are neither gradients nor a graph."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())
