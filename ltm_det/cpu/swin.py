"""What LTMSwin on the CPU is made of, see :mod:`.pieces`.

Shapes: V windows (of all images), N tokens in a window, C channels, nH heads.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.cpu import pieces


class Block(NamedTuple):
    """The tensors of a Swin block: two norms, the attention's and the MLP's layers.

    ``position_bias`` is (nH, N, N).
    """

    position_bias: Tensor
    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    proj: Tensor
    proj_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor


def window_piece(
    num_heads: int,
    scale: float,
    x: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    *layers: Tensor | None,
) -> Tensor:
    """Attention within windows, (V, N, C) to the same, see :func:`window_attention`."""
    if mask is not None:
        mask = mask if mask.ndim == 4 else mask[:, None]
        bias = mask if bias is None else bias + mask
    elif bias is not None:
        bias = bias[None]
    return pieces.attention_piece(num_heads, scale, x, lambda q: bias, *layers)


def block_piece(
    num_heads: int,
    scale: float,
    eps: float,
    x: Tensor,
    mask: Tensor | None,
    real: Tensor | None,
    kept: Tensor | None,
    *layers: Tensor | None,
) -> Tensor:
    """(V, N, C) to the same, see :func:`swin_block`."""
    own = Block(*layers)
    dim = x.shape[-1:]
    padded = real is not None and not real.all()
    z = F.layer_norm(x, dim, own.norm1, own.norm1_bias, eps)
    if padded:
        z = z.masked_fill(~real[..., None], 0)
    attention = own.position_bias, own.qkv, own.qkv_bias, own.proj, own.proj_bias
    change = window_piece(num_heads, scale, z, mask, *attention)
    x = x + (change if kept is None else kept[:, :1, None] * change)
    tokens = x.flatten(0, 1)
    if padded:  # what pads has no use for an MLP
        at = real.flatten().nonzero().squeeze(1)
        tokens = tokens.index_select(0, at)
    z = F.layer_norm(tokens, dim, own.norm2, own.norm2_bias, eps)
    change = pieces.mlp_piece(z, own.fc1, own.fc1_bias, own.fc2, own.fc2_bias)
    if padded:
        change = torch.zeros_like(x).flatten(0, 1).index_copy(0, at, change)
    change = change.view(x.shape)
    return x + (change if kept is None else kept[:, 1:, None] * change)


def patches_piece(
    eps: float, x: Tensor, norm: Tensor, norm_bias: Tensor, reduction: Tensor, bias: Tensor | None
) -> Tensor:
    """Patch merging of rows of S patches, (R, S, 2, 2, C) to (R, S, D)."""
    x = x.flatten(2)
    x = F.layer_norm(x, x.shape[-1:], norm, norm_bias, eps)
    return pieces.product(x, reduction, bias)


def patch_merging(
    x: Tensor, norm: Tensor, norm_bias: Tensor, eps: float, reduction: Tensor, bias: Tensor | None
) -> Tensor:
    """Norm and reduction of patches, (B, R, S, 2, 2, C) to (B, R * S, D)."""
    b, r, s = x.shape[:3]
    size = max(1, pieces.PIECE // (s * len(norm)))
    weights = [norm, norm_bias, reduction, bias]
    x = pieces.run(partial(patches_piece, eps), size, [x.flatten(0, 1)], weights)
    return x.view(b, r * s, -1)


def _attention(
    x: Tensor,
    mask: Tensor | None,
    layers: Sequence[Tensor | None],
    num_heads: int,
    scale: float,
) -> Tensor:
    size = pieces.attention_size(x.shape[1], num_heads, 3 * x.shape[2])
    return pieces.run(partial(window_piece, num_heads, scale), size, [x, mask], layers)


def _block(
    x: Tensor,
    order: Tensor | None,
    mask: Tensor | None,
    real: Tensor | None,
    kept: Tensor | None,
    layers: Sequence[Tensor | None],
    num_heads: int,
    scale: float,
    eps: float,
) -> Tensor:
    hidden = len(Block(*layers).fc1)
    size = pieces.attention_size(x.shape[1], num_heads, max(hidden, 3 * x.shape[2]))
    piece = partial(block_piece, num_heads, scale, eps)
    return pieces.run(piece, size, [x, mask, real, kept], layers, order)


# For torch.compile: pieces inside are not seen. They have no gradients.
_attention_op = torch.library.custom_op("ltm_det::window_attention", _attention, mutates_args=())
_attention_op.register_fake(lambda x, *_: torch.empty_like(x))
_block_op = torch.library.custom_op("ltm_det::swin_block", _block, mutates_args=())
_block_op.register_fake(lambda x, *_: torch.empty_like(x))


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
    layers = [bias, qkv.weight, qkv.bias, proj.weight, proj.bias]
    return run(x, mask, layers, num_heads, scale)


def swin_block(
    x: Tensor,
    order: Tensor | None,
    mask: Tensor | None,
    real: Tensor | None,
    kept: Tensor | None,
    block: Block,
    num_heads: int,
    scale: float,
    eps: float,
) -> Tensor:
    """A whole block, x + attention(norm(x)) and then the same with the MLP, (V, N, C) to the same.

    Args:
        x: The windows' tokens.
        order: (W * N,), in which an image's tokens make the windows that are attended in; they end
            up where they were. None: as they are.
        mask: Of the windows so made, as for :func:`window_attention`.
        real: (W, N) of them, False for tokens that pad, which attention takes as zero and which
            have no MLP. None: all are real.
        kept: (V, 2), what the changes by attention and by the MLP are multiplied by. None: by one.
        block: Its tensors.
        num_heads: nH.
        scale: Of the logits.
        eps: Of both norms.
    """
    run = _block_op if torch.compiler.is_compiling() else _block
    return run(x, order, mask, real, kept, list(block), num_heads, scale, eps)
