"""Decomposed relative positions (MViTv2, arXiv 2112.01526; ViTDet, arXiv 2203.16527).

Shapes: B images, T prefix tokens, H x W tokens of the map, nH heads, D = C / nH.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
