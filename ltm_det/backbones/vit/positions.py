"""Decomposed relative positions (MViTv2, arXiv 2112.01526; ViTDet, arXiv 2203.16527), and rotary
positions along two axes (RoPE, arXiv 2104.09864; DINOv3, arXiv 2508.10104).

Shapes: B images, T prefix tokens, H x W tokens of the map, nH heads, D = C / nH.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn


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


class RotaryPositions(nn.Module):
    """Angles by which DINOv3 turns queries and keys, of tokens wherever on the map they are.

    The map's height and width each go from -1 to 1; half of the channels turn with the row, half
    with the column, at D / 4 periods from 1 to almost ``base``. In training DINOv3 also jitters the
    map's size; this does not.

    Args:
        head_dim: D, a multiple of 4.
        base: Of the periods, base^(4 i / D) for i from 0 to D / 4 - 1.

    Attributes:
        periods: (D / 4,). In a state dict as in DINOv3's own, whose are rounded to bfloat16.
    """

    periods: Tensor

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        exponents = torch.arange(head_dim // 4, dtype=torch.float64) * 4 / head_dim
        self.register_buffer("periods", (base**exponents).to(torch.get_default_dtype()))

    def forward(self, at: Tensor, lengths: tuple[int, int]) -> Tensor:
        """Sines, then cosines, of tokens in a map of (H, W) dense tokens.

        Args:
            at: (*, 2), row and column of a token's middle; 0 is the middle of the first.
            lengths: (H, W)

        Returns:
            (*, 2 * D), see :func:`rotated`.
        """
        on_map = [(2 * at[..., i] + 1) / lengths[i] - 1 for i in (0, 1)]  # in [-1, 1]
        turns = torch.stack(on_map, -1)[..., None] / self.periods.to(at.dtype)  # (*, 2, D / 4)
        angles = (2 * math.pi * turns).flatten(-2)
        return torch.cat([angles.sin(), angles.sin(), angles.cos(), angles.cos()], -1)


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Queries or keys (B, nH, T + L, D), all but the T prefix tokens turned by the angles of
    ``rope`` (B or 1, 1, L, 2 * D): channel i with channel i + D / 2, as DINOv3 pairs them."""
    prefix, x = x.tensor_split([x.shape[2] - rope.shape[2]], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(x, rope, half=True).to(x.dtype)], dim=2)
