"""Relative positions, and what LTMViT's attention on the CPU is made of, see :mod:`.pieces`.

Shapes: B images, V windows (of all images), T prefix tokens, L = H * W tokens of the map, N tokens
in a window, C channels, nH heads, D = C / nH.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.cpu import pieces


def position_bias(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What relative positions add to the logits, zero for prefix tokens.

    Args:
        q: (B, nH, T + h * W, D), queries of T prefix tokens and of h rows of an H x W map.
        rows: (h, H, D), of :func:`relative_embedding`.
        columns: (W, W, D)

    Returns:
        (B, nH, T + h * W, T + H * W)
    """
    (height, _, _), (width, _, _) = rows.shape, columns.shape
    prefix = q.shape[2] - height * width
    q = q[:, :, prefix:].unflatten(2, (height, width))  # (B, nH, h, W, D)
    along_h = torch.einsum("bnhwd,hkd->bnhwk", q, rows).contiguous()
    along_w = torch.einsum("bnhwd,wkd->bnhwk", q, columns).contiguous()
    # the sum has their layout: were it another, flatten would copy the largest tensor of a pass
    bias = along_h[..., None] + along_w[..., None, :]  # (B, nH, h, W, H, W)
    bias = bias.flatten(4).flatten(2, 3)
    return F.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias


def window_piece(
    num_heads: int,
    scale: float,
    x: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    *layers: Tensor | None,
) -> Tensor:
    """Attention within windows, both projections included: (V, N, C) to the same."""

    def logits(q: Tensor) -> Tensor | None:
        return logits_bias(q, mask, rows, columns)

    return pieces.attention_piece(num_heads, scale, x, logits, *layers)


def rows_piece(
    q: Tensor,
    rows: Tensor | None,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    columns: Tensor | None,
) -> Tensor:
    """Attention of the queries of h rows, (h, B, nH, W, D) to the same; k and v (B, nH, L, D)."""
    height, b, _, width, _ = q.shape
    q = q.permute(1, 2, 0, 3, 4).flatten(2, 3)  # (B, nH, h * W, D)
    x = F.scaled_dot_product_attention(q, k, v, logits_bias(q, mask, rows, columns))
    return x.unflatten(2, (height, width)).permute(2, 0, 1, 3, 4)


def logits_bias(
    q: Tensor, mask: Tensor | None, rows: Tensor | None, columns: Tensor | None
) -> Tensor | None:
    if rows is None:
        return mask
    bias = position_bias(q, rows, columns)
    return bias if mask is None else bias + mask


def relative_embedding(table: Tensor, length: int, cells: int, spacing: float) -> Tensor:
    """Embeddings of the displacements between cells along one axis.

    Args:
        table: (S, D), rows for displacements from -(S - 1) / 2 to (S - 1) / 2 tokens. Resized
            linearly where it was made for another length, as ViTDet does.
        length: Tokens of the dense axis; the table is read as 2 * length - 1 rows.
        cells: n, cells that the axis has now.
        spacing: Distance of neighbouring cells in tokens; between two rows the embedding is
            interpolated linearly.

    Returns:
        (n, n, D), for query and key.
    """
    last = 2 * length - 2
    if table.shape[0] != last + 1:
        table = F.interpolate(table.T[None], last + 1, mode="linear")[0].T
    if spacing != 1:
        at = torch.arange(1 - cells, cells, device=table.device) * spacing + length - 1
        at = at.clamp(0, last)
        low = at.floor().long()
        high = (low + 1).clamp(max=last)
        table = torch.lerp(table[low], table[high], (at - low).to(table.dtype)[:, None])
    n = torch.arange(cells, device=table.device)
    return table[n[:, None] - n + (table.shape[0] - 1) // 2]
