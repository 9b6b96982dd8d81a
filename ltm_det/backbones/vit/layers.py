"""The block of LTMViT: timm's, attending within windows or over the whole map.

Shapes: B images, W windows, T prefix tokens, L = H * W tokens of the map, N tokens in a window,
C channels, nH heads, D = C / nH, M side of the dense window, k side of the merged window.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention, SwiGLUPacked
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ltm_det.backbones.common.attention import attend
from ltm_det.backbones.common.cues import attention_cues
from ltm_det.backbones.common.maps import merged_grid, on_maps
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.vit.positions import (
    RotaryPositions,
    position_bias,
    relative_embedding,
    rotated,
)
from ltm_det.cpu import Call, plain
from ltm_det.merging import SHUT, Cues, Merger, Merging


class TokenMap(NamedTuple):
    """The map that a block runs on, and what it was merged from.

    Attributes:
        grid: Of the tokens as they are now, in windows of k x k.
        dense: Of the tokens before any merging, in windows of M x M.
        key_bias: (W, k * k) or (B, W, k * k), added to the attention logits of each key; shuts out
            tokens that nothing was merged into. None for nothing.
        at: (B, W, k * k, 2), row and column of each token within its window, in dense tokens, where
            merging kept no grid, so that the map's order says nothing, or there are rotary
            positions. None: the grid's cells.
        rope: (B or 1, W, k * k, 2 * D), see :class:`.positions.RotaryPositions`, or None.
        size: (B, W, k * k), of the mergers that keep it, see :class:`ltm_det.merging.Merging`.
    """

    grid: WindowGrid
    dense: WindowGrid
    key_bias: Tensor | None = None
    at: Tensor | None = None
    size: Tensor | None = None
    rope: Tensor | None = None

    @property
    def spacing(self) -> float:
        """Distance of neighbours on the map, in dense tokens."""
        return self.dense.window / self.grid.window

    def valid(self, device: torch.device) -> Tensor | None:
        """(W, N) or (B, W, N), False for tokens that stand for nothing; None where all do."""
        if self.key_bias is None:
            return self.grid.valid(device)
        return self.key_bias > SHUT / 2

    def merged(
        self, x: Tensor, merger: Merger, reader: "LTMViTBlock", call: Call = plain
    ) -> tuple[Merging, "TokenMap"]:
        """How ``merger`` merges x (B, L, C), as a merging of maps, and the map it leads to.

        ``reader`` is the block that the merged tokens go to, ``call`` how the merger is called.
        """
        here, valid = self.grid, self.valid(x.device)
        there = merged_grid(here, merger)
        tokens = here.partition(x)
        cues = Cues(size=self.size)
        if merger.reads:
            cues = reader.cues(x, self, merger.reads)
        windows, _ = call(merger, tokens, None, valid, cues)
        at = None
        if not merger.keeps_grid or self.rope is not None:
            at = windows.mean_of(self.places(x).expand(*tokens.shape[:2], -1, -1))
        merged = TokenMap(there, self.dense, windows.key_bias, at, windows.size)
        return on_maps(windows, here, there), merged

    def places(self, x: Tensor) -> Tensor:
        """(*, k * k, 2), see ``at``; in the dtype of x."""
        if self.at is not None:
            return self.at
        line = torch.arange(self.grid.window, device=x.device, dtype=x.dtype)
        return torch.cartesian_prod(line, line) * self.spacing + (self.spacing - 1) / 2

    def places_on_map(self, x: Tensor) -> Tensor:
        """(B or 1, W, k * k, 2), see ``at``, on the whole map; in the dtype of x at least."""
        rows = torch.arange(self.dense.rows, device=x.device) * self.dense.window
        columns = torch.arange(self.dense.columns, device=x.device) * self.dense.window
        windows = torch.cartesian_prod(rows, columns)[:, None]
        at = self.places(x).to(x.dtype) + windows
        return at.reshape(-1, *windows.shape[:1], self.grid.window**2, 2)

    def turned(self, rope: RotaryPositions | None, x: Tensor) -> "TokenMap":
        """The map with rotary positions of its tokens, where the backbone has any."""
        if rope is None:
            return self
        full = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        places = self.places_on_map(full)
        return self._replace(rope=rope(places, (self.dense.height, self.dense.width)))


class Place(NamedTuple):
    """Where the tokens lie that attend to each other.

    Attributes:
        cells: (H, W) of their map, H * W = L.
        lengths: How many dense tokens its height and its width stand for.
        spacing: Distance of neighbouring cells, in dense tokens.
        at: (B, L, 2), row and column of tokens that lie on no grid, in dense tokens, or None.
        rope: (B or 1, 1, L, 2 * D), by which queries and keys are turned, or None.
    """

    cells: tuple[int, int]
    lengths: tuple[int, int]
    spacing: float
    at: Tensor | None = None
    rope: Tensor | None = None


class RelPosAttention(Attention):
    """timm's multi-head attention with optional decomposed relative positions.

    The logits of query (y, x) and key (y', x') gain q . R_h[y - y'] + q . R_w[x - x'], with q as it
    is before scaling (MViTv2, arXiv 2112.01526; ViTDet, arXiv 2203.16527).

    Args:
        dim: C.
        num_heads: nH.
        rel_pos_size: Rows and columns of the map for which there are relative positions, or None.
        options: As for timm's Attention.

    Attributes:
        everywhere: Whether all tokens attend to each other; None where they choose.
    """

    everywhere: bool | None = False

    def __init__(
        self, dim: int, num_heads: int, rel_pos_size: tuple[int, int] | None, **options
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.use_rel_pos = rel_pos_size is not None
        if self.use_rel_pos:
            rows, columns = rel_pos_size
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rows - 1, self.head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * columns - 1, self.head_dim))

    def mix(self, qkv: Tensor, place: Place, mask: Tensor | None) -> Tensor:
        """Attention over T prefix tokens and a map, without its projections.

        Args:
            qkv: (B, T + L, 3C), queries, keys and values.
            place: Of the L tokens.
            mask: Added to the logits, broadcastable to (B, nH, T + L, T + L), or None.

        Returns:
            (B, T + L, C)
        """
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)  # each (B, nH, T + L, D)
        if place.rope is not None:
            q, k = rotated(q, place.rope), rotated(k, place.rope)
        if self.use_rel_pos and place.at is not None:
            bias = self.scattered_bias(q, place.at, place.lengths)
            mask = bias if mask is None else bias + mask
        else:
            mask = self.logits(q, mask, *self.embeddings(place))
        mask = None if mask is None else mask.to(q.dtype)
        x = attend(q, k, v, mask, self.attn_drop, self.scale)
        return self.norm(x.transpose(1, 2).flatten(2))

    def embeddings(self, place: Place) -> tuple[Tensor | None, Tensor | None]:
        """(H, H, D) and (W, W, D), of the rows and of the columns; None without positions."""
        if not self.use_rel_pos:
            return None, None
        tables = zip((self.rel_pos_h, self.rel_pos_w), place.lengths, place.cells)
        rows, columns = (relative_embedding(*table, place.spacing) for table in tables)
        return rows, columns

    @staticmethod
    def logits(
        q: Tensor, mask: Tensor | None, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor | None:
        """What is added to the logits of q, see :func:`position_bias`; None for nothing."""
        if rows is None:
            return mask
        bias = position_bias(q, rows.to(q.dtype), columns.to(q.dtype))
        return bias if mask is None else bias + mask

    def scattered_bias(self, q: Tensor, at: Tensor, lengths: tuple[int, int]) -> Tensor:
        """As `position_bias`, of tokens at the dense tokens nearest to ``at`` (B, L, 2)."""
        prefix = q.shape[2] - at.shape[1]
        q, bias = q[:, :, prefix:], 0.0
        for axis, table in enumerate((self.rel_pos_h, self.rel_pos_w)):
            line = at[..., axis].round().long().clamp(0, lengths[axis] - 1)  # (B, L)
            embedding = relative_embedding(table, lengths[axis], lengths[axis], 1.0)[line]
            along = torch.einsum("bnld,blkd->bnlk", q, embedding.to(q.dtype))
            bias = bias + along.gather(-1, line[:, None, None].expand(-1, *q.shape[1:3], -1))
        return F.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias


class GlobalAttention(RelPosAttention):
    """Every token attends to every token."""

    everywhere = True

    def forward(self, x: Tensor, tokens: TokenMap) -> Tensor:
        """(B, T + L, C) to the same."""
        x = self.mix(self.qkv(x), *self.place(x, tokens))
        return self.proj_drop(self.proj(x))

    def place(self, x: Tensor, tokens: TokenMap) -> tuple[Place, Tensor | None]:
        """Where the tokens of x (B, T + L, C) lie, and the mask of their attention."""
        grid, dense = tokens.grid, tokens.dense
        mask = None
        if tokens.key_bias is not None:
            key_bias = tokens.key_bias.expand(x.shape[0], -1, -1).unsqueeze(-1)
            key_bias = grid.reverse(key_bias).squeeze(-1)  # (B, L)
            mask = F.pad(key_bias, (x.shape[1] - key_bias.shape[1], 0))[:, None, None]
        cells, lengths = (grid.height, grid.width), (dense.height, dense.width)
        at = None if tokens.at is None else grid.reverse(tokens.places_on_map(x))
        rope = None if tokens.rope is None else grid.reverse(tokens.rope)[:, None]
        return Place(cells, lengths, tokens.spacing, at, rope), mask


class WindowAttention(RelPosAttention):
    """Tokens attend within their window; prefix tokens, which lie in none, take no part.

    Tokens that pad the dense map's windows are zero, and are keys as in ViTDet; they are projected
    once, since all are alike.
    """

    def forward(self, x: Tensor, tokens: TokenMap) -> Tensor:
        """(B, T + L, C) to the same."""
        grid = tokens.grid
        prefix = x.shape[1] - grid.height * grid.width
        qkv = self.qkv(F.pad(x[:, prefix:], (0, 0, 0, 1)))  # one more: the zeros that pad
        windows = grid.partition(qkv[:, :-1])  # (B, W, N, 3C)
        if grid.padded:
            windows = torch.where(grid.valid(x.device)[..., None], windows, qkv[:, None, -1:])
        out = self.mix(windows.flatten(0, 1), *self.place(windows, tokens))
        out = grid.reverse(out.unflatten(0, windows.shape[:2]))  # (B, L, C)
        return F.pad(self.proj_drop(self.proj(out)), (0, 0, prefix, 0))

    def place(self, windows: Tensor, tokens: TokenMap) -> tuple[Place, Tensor | None]:
        """Where the tokens of windows (B, W, N, C) lie, and the mask of their attention."""
        grid, window = tokens.grid, tokens.dense.window
        mask = None
        if tokens.key_bias is not None:
            mask = tokens.key_bias.expand(windows.shape[:-1]).flatten(0, 1)[:, None, None]
        cells, lengths = (grid.window, grid.window), (window, window)
        at = None if tokens.at is None else tokens.at.flatten(0, 1)
        rope = tokens.rope
        if rope is not None:
            rope = rope.expand(len(windows), -1, -1, -1).flatten(0, 1)[:, None]
        return Place(cells, lengths, tokens.spacing, at, rope), mask


def keep(x: Tensor) -> Tensor:
    """Restores nothing."""
    return x


# What timm's block makes its MLP of.
MLPS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "swiglu": dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU),
}


class LTMViTBlock(Block):
    """timm's block, with ``attn`` in the place of its attention."""

    def __init__(self, dim: int, num_heads: int, attn: RelPosAttention, **options) -> None:
        super().__init__(dim, num_heads, **options)
        self.attn = attn

    def forward(
        self, x: Tensor, tokens: TokenMap, restore: Callable[[Tensor], Tensor] = keep
    ) -> Tensor:
        """(B, T + L, C) to the same, or to what ``restore``, between attention and MLP, makes."""
        x = restore(x + self.drop_path1(self.ls1(self.attn(self.norm1(x), tokens))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def cues(self, x: Tensor, tokens: TokenMap, reads: Sequence[str]) -> Cues:
        """What a merger before it reads of its attention, of tokens x (B, L, C)."""
        z, valid = tokens.grid.partition(self.norm1(x)), tokens.valid(x.device)
        return attention_cues(self.attn.qkv, self.attn.num_heads, z, reads, valid, tokens.size)
