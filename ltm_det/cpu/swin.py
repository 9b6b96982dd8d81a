"""How LTMSwin runs on the CPU: the executors of its blocks.

Shapes: B images, W windows, V = B * W, N tokens in a window, C channels, nH heads, P kept tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.cpu import layers, pieces
from ltm_det.cpu.door import Executor


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
    *tensors: Any,
) -> Tensor:
    """Attention within windows, (V, N, C) to the same, see :func:`window_attention`."""
    if mask is not None:
        mask = mask if mask.ndim == 4 else mask[:, None]
        bias = mask if bias is None else bias + mask
    elif bias is not None:
        bias = bias[None]
    return layers.attention_piece(num_heads, scale, x, lambda q: bias, *tensors)


def block_piece(
    num_heads: int,
    scale: float,
    eps: float,
    x: Tensor,
    mask: Tensor | None,
    real: Tensor | None,
    kept: Tensor | None,
    *tensors: Tensor | None,
) -> Tensor:
    """(V, N, C) to the same, see :func:`swin_block`."""
    own = Block._make(tensors)
    dim = x.shape[-1:]
    if real is not None and real.all():
        real = None
    z = F.layer_norm(x, dim, own.norm1, own.norm1_bias, eps)
    if real is not None:
        z = z.masked_fill(~real[..., None], 0)
    attention = own.position_bias, own.qkv, own.qkv_bias, own.proj, own.proj_bias
    change = window_piece(num_heads, scale, z, mask, *attention)
    x = x + (change if kept is None else kept[:, :1, None] * change)
    tokens = x.flatten(0, 1)
    if real is not None:  # what pads has no use for an MLP
        at = real.flatten().nonzero().squeeze(1)
        tokens = tokens.index_select(0, at)
    z = F.layer_norm(tokens, dim, own.norm2, own.norm2_bias, eps)
    change = layers.mlp_piece(z, own.fc1, own.fc1_bias, own.fc2, own.fc2_bias)
    if real is not None:
        change = torch.zeros_like(x).flatten(0, 1).index_copy(0, at, change)
    change = change.view(x.shape)
    return x + (change if kept is None else kept[:, 1:, None] * change)


def _attention(
    x: Tensor,
    mask: Tensor | None,
    tensors: Sequence[Tensor | None],
    num_heads: int,
    scale: float,
) -> Tensor:
    size = layers.attention_size(x.shape[1], num_heads, 3 * x.shape[2])
    return pieces.run(partial(window_piece, num_heads, scale), size, [x, mask], tensors)


def _block(
    x: Tensor,
    order: Tensor | None,
    mask: Tensor | None,
    real: Tensor | None,
    kept: Tensor | None,
    tensors: Sequence[Tensor | None],
    num_heads: int,
    scale: float,
    eps: float,
) -> Tensor:
    hidden = len(Block._make(tensors).fc1)
    size = layers.attention_size(x.shape[1], num_heads, max(hidden, 3 * x.shape[2]))
    piece = partial(block_piece, num_heads, scale, eps)
    return pieces.run(piece, size, [x, mask, real, kept], tensors, order)


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
    tensors = [bias, qkv.weight, qkv.bias, proj.weight, proj.bias]
    return run(x, mask, tensors, num_heads, scale)


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


def run_block(
    block: Any, x: Tensor, grid: Any, state: Any = None, key_bias: Tensor | None = None
) -> tuple[Tensor, Any]:
    """An LTMSwinBlock that merges nothing: some windows at a time, through the whole block."""
    b, w, n, c = x.shape
    shift, msa = block.attn.shift, block.attn.w_msa
    mask = block.attn.mask(grid, x, key_bias)
    if mask is not None and mask.ndim == 4:
        mask = mask.expand(b, w, -1, -1).flatten(0, 1)
    drop_paths = block.attn.drop, block.ffn.dropout_layer
    kept = None
    if any(d.training and getattr(d, "drop_prob", 0) > 0 for d in drop_paths):
        kept = torch.cat([drop(x.new_ones(b, 1, 1)) for drop in drop_paths], dim=-1)
        kept = kept.expand(-1, w, -1).flatten(0, 1)
    (fc1, _, _), fc2, _ = block.ffn.layers
    read = block.norm1, msa.qkv, msa.proj, block.norm2, fc1, fc2
    tensors = [t for layer in read for t in (layer.weight, layer.bias)]
    x = swin_block(
        x.flatten(0, 1),
        grid.roll_order(-shift, x.device),
        mask,
        grid.rolled_valid(shift, x.device),
        kept,
        Block(msa.position_bias(), *tensors),
        msa.num_heads,
        msa.scale,
        block.norm1.eps,
    )
    return x.view(b, w, n, c), state


def run_merging_block(
    block: Any, x: Tensor, grid: Any, state: Any = None, key_bias: Tensor | None = None
) -> tuple[Tensor, Any]:
    """An LTMSwinBlock that merges before its MLP: attention and MLP in pieces."""
    valid = grid.valid(x.device)
    z = block.norm1(x) if valid is None else block.norm1(x).masked_fill(~valid[..., None], 0)
    mask = block.attn.mask(grid, z, key_bias)
    change = run_attention(block.attn.w_msa, grid.roll(z, -block.attn.shift), mask)
    x = x + block.attn.drop(grid.roll(change, block.attn.shift))
    merging, state = block.merger(x, state, valid, block.cues(z, valid))
    return merging.update(x, run_mlp(block, block.norm2(merging.merge(x)))), state


def run_gridless_block(
    block: Any, x: Tensor, grid: Any, state: Any = None, key_bias: Tensor | None = None
) -> tuple[Tensor, Any]:
    """A GridlessSwinBlock, which attends among merged tokens: attention and MLP in pieces."""

    def inside(y: Tensor, bias: Tensor) -> Tensor:
        y = y + block.attn.drop(run_attention(block.attn.w_msa, block.norm1(y), bias=bias))
        return y + run_mlp(block, block.norm2(y))

    return block.around(x, grid, inside), state


def run_attention(
    msa: Any, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Its WindowAttention, (B, W, N, C) to the same."""
    b, w, n, c = x.shape
    if mask is not None and mask.ndim == 4:
        mask = mask.expand(b, w, -1, -1).flatten(0, 1)
    if bias is not None:
        mask = bias.expand(b, w, -1, -1, -1).flatten(0, 1)
    position = msa.position_bias() if bias is None else None
    own = msa.qkv, msa.proj, msa.num_heads, msa.scale
    return window_attention(x.flatten(0, 1), mask, position, *own).view(b, w, n, c)


def run_mlp(block: Any, x: Tensor) -> Tensor:
    """Its FFN, (*, C) to the same."""
    (fc1, _, _), fc2, _ = block.ffn.layers
    return block.ffn.dropout_layer(layers.mlp(x, fc1, fc2))


# Of a block, what is read or passed over.
SLOTS = {
    "norm1": "LayerNorm",
    "attn.w_msa.qkv": "Linear",
    "attn.w_msa.attn_drop": "Dropout",
    "attn.w_msa.proj": "Linear",
    "attn.w_msa.proj_drop": "Dropout",
    "attn.drop": "DropPath Identity",
    "norm2": "LayerNorm",
    "ffn": "FFN",
    "ffn.layers": "Sequential",
    "ffn.layers.0": "Sequential",
    "ffn.layers.0.0": "Linear",
    "ffn.layers.0.1": "GELU",
    "ffn.layers.0.2": "Dropout",
    "ffn.layers.1": "Linear",
    "ffn.layers.2": "Dropout",
    "ffn.dropout_layer": "DropPath Identity",
    "ffn.gamma2": "Identity",
}


def serves_block(block: Any) -> bool:
    """Whether its options are those that the executors know."""
    msa, ffn = block.attn.w_msa, block.ffn
    if (len(ffn.layers), len(ffn.layers[0])) != (3, 3) or ffn.add_identity:
        return False
    (_, act, drop), _, last_drop = ffn.layers
    return (
        layers.is_gelu(act)
        and block.norm1.eps == block.norm2.eps
        and not layers.drops(msa.attn_drop, msa.proj_drop, drop, last_drop)
    )


BLOCK = Executor(
    run=lambda block, *args: (run_block if block.merger is None else run_merging_block)(
        block, *args
    ),
    serves=serves_block,
    called=lambda block: [] if block.merger is None else [block.merger],
    slots=SLOTS,
)
GRIDLESS_BLOCK = Executor(run_gridless_block, serves_block, lambda block: [block.merger], SLOTS)
