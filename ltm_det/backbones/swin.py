"""LTMSwin: mmdet's Swin Transformer with merged tokens (arXiv 2103.14030 and 2407.15219).

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels, nH heads, M side of
the dense window, k side of the merged window, H x W grid. A stage keeps its tokens in window
layout (B, W, N, C) from its start to its end.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmdet.models.backbones import SwinTransformer
from mmdet.models.backbones.swin import ShiftWindowMSA, SwinBlock, SwinBlockSequence, WindowMSA
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ltm_det.backbones.windows import WindowGrid
from ltm_det.merging import Merger, build_merger, kept_side, kept_tokens, ratio_schedule

SCOPES = ("block", "stage")


class WindowAttention(BaseModule):
    """mmdet's window attention, on windows of side k <= M with the position table of side M.

    The table stays at the dense size whatever k is, so that any checkpoint fits any ratio; the
    bias of a pair of merged tokens is read off it, bilinearly, at their true distance.
    """

    def __init__(self, msa: WindowMSA, window: int) -> None:
        super().__init__()
        self.num_heads = msa.num_heads
        self.scale = msa.scale
        self.relative_position_bias_table = msa.relative_position_bias_table
        self.qkv, self.proj = msa.qkv, msa.proj
        self.attn_drop, self.proj_drop = msa.attn_drop, msa.proj_drop
        read = relative_position_readout(msa.window_size[0], window)
        self.register_buffer("table_readout", read, persistent=False)
        self.register_buffer(
            "relative_position_index", relative_position_index(window), persistent=False
        )

    def position_bias(self) -> Tensor:
        """(nH, N, N) for the side k of the windows it attends in."""
        table = self.relative_position_bias_table
        if self.table_readout is not None:
            table = self.table_readout.to(table.dtype) @ table
        return table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends within windows: (B, W, N, C) to the same; mask broadcasts to (B, W, 1, N, N)."""
        b, w, n, c = x.shape
        bias = self.position_bias().to(x.dtype)[None]
        if mask is not None:
            bias = (bias + mask.to(x.dtype)).expand(b, w, -1, -1, -1).flatten(0, 1)
        qkv = self.qkv(x).reshape(b * w, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B * W, nH, N, C / nH)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), dropout, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, w, n, c)))


class ShiftedWindowAttention(BaseModule):
    """Window attention on the map rolled by ``shift``, drop path included."""

    def __init__(self, attn: ShiftWindowMSA, window: int) -> None:
        super().__init__()
        self.shift = window // 2 if attn.shift_size else 0
        self.w_msa = WindowAttention(attn.w_msa, window)
        self.drop = attn.drop

    def forward(self, x: Tensor, grid: WindowGrid, key_bias: Tensor | None = None) -> Tensor:
        """(B, W, N, C) to the same; key_bias is (W, N) or (B, W, N)."""
        mask = None
        if self.shift:
            x = grid.roll(x, -self.shift)
            mask = grid.shift_mask(self.shift, x.device)[:, None]  # (W, 1, N, N)
        if key_bias is not None:
            key_bias = key_bias.expand(x.shape[:-1]).unsqueeze(-1)
            key_bias = grid.roll(key_bias, -self.shift).squeeze(-1)[:, :, None, None]
            mask = key_bias if mask is None else mask + key_bias
        x = grid.roll(self.w_msa(x, mask), self.shift)
        return self.drop(x)


class LTMSwinBlock(BaseModule):
    """A Swin block that may share its MLP's update among merged tokens (the paper's Figure 1).

    Args:
        block: mmdet's block; its modules and their names are taken over.
        window: Side of the windows it attends in.
        merger: What merges tokens before the MLP and restores them after it, None for nothing.
    """

    def __init__(self, block: SwinBlock, window: int, merger: Merger | None) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = ShiftedWindowAttention(block.attn, window)
        self.norm2 = block.norm2
        self.ffn = block.ffn
        self.ffn.add_identity = False
        self.merger = merger
        self.with_cp = block.with_cp

    def forward(
        self,
        x: Tensor,
        grid: WindowGrid,
        state: Any = None,
        key_bias: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """(B, W, N, C) and the merger chain's state to the same."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, grid, state, key_bias, use_reentrant=False)
        return self._forward(x, grid, state, key_bias)

    def _forward(
        self, x: Tensor, grid: WindowGrid, state: Any, key_bias: Tensor | None
    ) -> tuple[Tensor, Any]:
        valid = grid.valid(x.device)
        x = x + self.attn(zero_padding(self.norm1(x), valid), grid, key_bias)
        merging = grid.no_merging()
        if self.merger is not None:
            merging, state = self.merger(x, state, valid)
        return x + merging.unmerge(self.ffn(self.norm2(merging.merge(x)))), state


class Span(NamedTuple):
    """Consecutive blocks ``start`` to ``stop`` - 1 that run on the same k x k tokens a window."""

    start: int
    stop: int
    side: int


class LTMSwinStage(BaseModule):
    """A stage of LTMSwin: spans of dense blocks and spans of blocks on merged tokens.

    Args:
        stage: mmdet's stage; its modules and their names are taken over.
        ratios: Compression ratio of each block; 1.0 is a dense block.
        scope: 'block' merges before each block's MLP and restores after it; 'stage' merges at the
            start of each run of blocks of equal ratio below 1 and restores at its end.
        merger: Type and options of the mergers.
    """

    def __init__(
        self, stage: SwinBlockSequence, ratios: list[float], scope: str, merger: Mapping[str, Any]
    ) -> None:
        super().__init__()
        attn = stage.blocks[0].attn
        self.window, tokens = attn.window_size, attn.window_size**2
        if scope == "block":
            sides = [self.window] * len(ratios)
            self.kept = block_tokens = [kept_tokens(r, tokens) for r in ratios]
        else:
            sides = [kept_side(r, self.window) for r in ratios]
            self.kept = [side**2 for side in sides]
            block_tokens = [tokens] * len(ratios)
        self.spans = _spans(sides)
        span_tokens = [span.side**2 for span in self.spans]

        dim = attn.w_msa.embed_dims
        block_mergers = _merger_chain(dim, self.window, block_tokens, merger)
        self.blocks = ModuleList(map(LTMSwinBlock, stage.blocks, sides, block_mergers))
        span_mergers = _merger_chain(dim, self.window, span_tokens, merger)
        self.mergers = nn.ModuleDict(  # by the block before which it merges
            {str(span.start): m for span, m in zip(self.spans, span_mergers, strict=True) if m}
        )
        self.downsample = stage.downsample

    def forward(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, tuple[int, int], Tensor]:
        """(B, H * W, C) to the next stage's input and its (H, W), and to this stage's output."""
        grid = WindowGrid(*hw, self.window)
        x, state = grid.partition(x), None
        for span in self.spans:
            blocks = self.blocks[span.start : span.stop]
            if span.side == self.window:
                for block in blocks:
                    x, state = block(x, grid, state)
            else:
                merger = self.mergers[str(span.start)]
                merging, state = merger(x, state, grid.valid(x.device))
                y = y0 = merging.merge(x)  # (B, W, P, C)
                for block in blocks:
                    y, _ = block(y, grid.merged(span.side), key_bias=merging.key_bias)
                x = x + merging.unmerge(y - y0)
        out = grid.reverse(x)
        if self.downsample is None:
            return out, hw, out
        return *self.downsample(out, hw), out

    def extra_repr(self) -> str:
        return f"window={self.window}, kept tokens of {self.window**2} in each block={self.kept}"


def _spans(sides: list[int]) -> list[Span]:
    spans, start = [], 0
    for side, run in groupby(sides):
        stop = start + len(list(run))
        spans.append(Span(start, stop, side))
        start = stop
    return spans


def _merger_chain(
    dim: int, window: int, tokens: list[int], options: Mapping[str, Any]
) -> list[Merger | None]:
    """A merger for each entry of ``tokens``, None where it is all of the window's; those of equal P
    follow on from one another."""
    mergers, previous = [], None
    for kept in tokens:
        if kept == window**2:
            mergers.append(None)
            continue
        mergers.append(
            build_merger(dim=dim, window=window, tokens=kept, chained=kept == previous, **options)
        )
        previous = kept
    return mergers


@MODELS.register_module()
class LTMSwin(SwinTransformer):
    """Swin Transformer with learnable token merging, restored to full feature maps for FPN.

    Every argument of mmdet's SwinTransformer is taken, and its parameters keep their names, so
    that Swin checkpoints load. Differences from it: ``train()`` and ``eval()`` return the module,
    ``use_abs_pos_embed`` works at any input size, loading accounts for every key, and masks are
    cached per input size.

    Args:
        merger: None for the dense backbone, or a dict:

            - type: 'LTM' (learned) or 'Pool' (untrained area pooling).
            - compression_ratio: Kept fraction in (0, 1]: one number, one per stage, or for any
              stage a list with one per block. The ratio really reached is P / N with
              P = ceil(ratio * N) in block scope, P = round(M * sqrt(ratio))^2 in stage scope.
            - scope: 'stage' (default) or 'block', see :class:`LTMSwinStage`.
            - dense_blocks: Blocks that stay dense, see
              :func:`ltm_det.merging.ratio_schedule`.
            - whatever else the merger takes: for LTM ``mask`` and ``temperature``.

    Raises:
        ValueError: On an unknown scope, merger or mask, or a bad ratio schedule.
    """

    def __init__(
        self,
        *,
        pretrain_img_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        merger: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> None:
        pretrain_img_size = to_2tuple(pretrain_img_size)
        super().__init__(pretrain_img_size=pretrain_img_size, patch_size=patch_size, **kwargs)
        self.pretrain_grid = tuple(side // patch_size for side in pretrain_img_size)
        depths = [len(stage.blocks) for stage in self.stages]
        ratios, scope, options = _parse_merger(merger, depths)
        self.stages = ModuleList(
            LTMSwinStage(stage, r, scope, options)
            for stage, r in zip(self.stages, ratios, strict=True)
        )

    def train(self, mode: bool = True) -> "LTMSwin":
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) of any size to the maps (B, C_i, H_i, W_i) of ``out_indices``."""
        x, hw = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + self._resized_pos_embed(hw)
        x = self.drop_after_pos(x)
        outs = []
        for i, stage in enumerate(self.stages):
            out_hw = hw
            x, hw, out = stage(x, hw)
            if i in self.out_indices:
                out = getattr(self, f"norm{i}")(out)
                outs.append(out.transpose(1, 2).unflatten(2, out_hw).contiguous())
        return outs

    def _resized_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        """(1, H * W, C): the absolute position embedding, resampled to the grid of the input."""
        if hw == self.pretrain_grid:
            return self.absolute_pos_embed
        embed = self.absolute_pos_embed.transpose(1, 2).unflatten(2, self.pretrain_grid)
        embed = F.interpolate(embed, size=hw, mode="bicubic", align_corners=False)
        return embed.flatten(2).transpose(1, 2)


def zero_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeroes padded tokens, which is what the dense Swin lets attention see of them."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0)


def relative_position_index(window: int) -> Tensor:
    """(N, N): row of the (2k-1)^2 table that holds the bias of query n and key m, window side k."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return dy * (2 * window - 1) + dx


def relative_position_readout(window: int, side: int) -> Tensor | None:
    """((2k-1)^2, (2M-1)^2), which reads the table of windows of side k off that of side M.

    Cells of the merged window lie M / k tokens apart: the bias at displacement j cells is the
    dense table's at j * M / k tokens, linearly interpolated along each axis. None where k = M.
    """
    if side == window:
        return None
    at = torch.arange(1 - side, side) * window / side + window - 1  # in rows of the dense table
    axis = (1 - (at[:, None] - torch.arange(2 * window - 1)).abs()).clamp(min=0)
    return torch.kron(axis, axis)


def _parse_merger(
    merger: Mapping[str, Any] | None, depths: list[int]
) -> tuple[list[list[float]], str, dict[str, Any]]:
    """Ratios of all blocks, the scope, and the options left for the mergers themselves."""
    if merger is None:
        return [[1.0] * depth for depth in depths], "stage", {}
    options = dict(merger)
    missing = {"type", "compression_ratio"} - options.keys()
    if missing:
        raise ValueError(f"merger={dict(merger)} lacks {sorted(missing)}")
    scope = options.pop("scope", "stage")
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: choose one of {SCOPES}")
    ratios = ratio_schedule(
        options.pop("compression_ratio"), depths, options.pop("dense_blocks", None)
    )
    build_merger(dim=1, window=1, tokens=1, **options)  # bad options raise at any ratio
    return ratios, scope, options
