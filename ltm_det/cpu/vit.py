"""How LTMViT runs on the CPU: the executor of its blocks.

Shapes: B images, V windows (of all images), T prefix tokens, L = H * W tokens of the map, N tokens
in a window, C channels, nH heads, D = C / nH.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.cpu import layers, pieces
from ltm_det.cpu.door import Executor

# Queries of global attention taken at a time: torch's fused attention is slower for fewer than 192,
# and the logits of all are the largest tensor of a pass.
QUERIES = 256

# (queries (B, nH, N, D), mask, rows, columns) to what is added to the logits.
Logits = Callable[..., Tensor | None]


def window_piece(
    num_heads: int,
    scale: float,
    logits: Logits,
    x: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    *tensors: Any,
) -> Tensor:
    """Attention within windows, both projections included: (V, N, C) to the same."""

    def added(q: Tensor) -> Tensor | None:
        return logits(q, mask, rows, columns)

    return layers.attention_piece(num_heads, scale, x, added, *tensors)


def attend_in_windows(attn: Any, x: Tensor, tokens: Any) -> Tensor:
    """A WindowAttention without prefix tokens: some windows at a time."""
    windows = tokens.grid.partition(x)  # (B, W, N, C)
    place, mask = attn.place(windows, tokens)
    size = layers.attention_size(windows.shape[2], attn.num_heads, 3 * x.shape[2])
    weights = [attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias]
    piece = partial(window_piece, attn.num_heads, attn.scale, attn.logits)
    given = [*attn.embeddings(place), *weights]
    out = pieces.run(piece, size, [windows.flatten(0, 1), mask], given)
    return tokens.grid.reverse(out.view(windows.shape))


def rows_piece(
    scale: float,
    logits: Logits,
    q: Tensor,
    rows: Tensor | None,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    columns: Tensor | None,
) -> Tensor:
    """Attention of the queries of h rows, (h, B, nH, W, D) to the same; k and v (B, nH, L, D)."""
    height, _, _, width, _ = q.shape
    q = q.permute(1, 2, 0, 3, 4).flatten(2, 3)  # (B, nH, h * W, D)
    x = F.scaled_dot_product_attention(q, k, v, logits(q, mask, rows, columns), scale=scale)
    return x.unflatten(2, (height, width)).permute(2, 0, 1, 3, 4)


def attend_everywhere(attn: Any, x: Tensor, tokens: Any) -> Tensor:
    """A GlobalAttention without prefix tokens: the queries of some rows of the map at a time."""
    place, mask = attn.place(x, tokens)
    (b, n, c), (rows, columns) = x.shape, attn.embeddings(place)
    height, width = (1, n) if rows is None else (len(rows), len(columns))
    qkv = layers.linear_in_pieces(x.flatten(0, 1), attn.qkv)
    q, k, v = qkv.view(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q = q.unflatten(2, (height, width)).permute(2, 0, 1, 3, 4)  # (H, B, nH, W, D)
    piece = partial(rows_piece, attn.scale, attn.logits)
    x = pieces.run(piece, -(-QUERIES // width), [q, rows], [k, v, mask, columns])
    x = x.permute(1, 0, 3, 2, 4).reshape(b * n, c)
    return layers.linear_in_pieces(x, attn.proj).view(b, n, c)


def run_block(block: Any, x: Tensor, tokens: Any, restore: Callable[[Tensor], Tensor]) -> Tensor:
    """An LTMViTBlock: attention and MLP in pieces."""
    z = block.norm1(x)
    if block.attn.everywhere is None or _unusual(z, tokens):
        change = block.attn(z, tokens)
    else:
        attend = attend_everywhere if block.attn.everywhere else attend_in_windows
        change = block.attn.proj_drop(attend(block.attn, z, tokens))
    x = restore(x + block.drop_path1(block.ls1(change)))
    mlp = layers.mlp(block.norm2(x), block.mlp.fc1, block.mlp.fc2)
    return x + block.drop_path2(block.ls2(mlp))


def _unusual(x: Tensor, tokens: Any) -> bool:
    """Whether tokens lie on no grid, are turned or are more than a map; graphs have plain
    operators."""
    cells = tokens.grid.height * tokens.grid.width
    placed = tokens.at is not None or tokens.rope is not None
    return placed or x.shape[1] != cells or torch.compiler.is_compiling()


# Of a block, what is read or passed over.
SLOTS = {
    "attn.qkv": "Linear",
    "attn.q_norm": "Identity",
    "attn.k_norm": "Identity",
    "attn.attn_drop": "Dropout",
    "attn.norm": "Identity",
    "attn.proj": "Linear",
    "mlp": "Mlp",
    "mlp.fc1": "Linear",
    "mlp.act": "GELU",
    "mlp.drop1": "Dropout",
    "mlp.norm": "Identity",
    "mlp.fc2": "Linear",
    "mlp.drop2": "Dropout",
}


def serves_block(block: Any) -> bool:
    """Whether its options are those that the executor knows."""
    mlp = block.mlp
    return layers.is_gelu(mlp.act) and not layers.drops(block.attn.attn_drop, mlp.drop1, mlp.drop2)


# Early, since the logits of global attention, which torch's way has whole, are large.
BLOCK = Executor(run_block, serves_block, slots=SLOTS, least=0.5)
