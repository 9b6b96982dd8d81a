"""The blocks of LTMPVTv2: timm's, whose queries may be merged tokens.

Shapes: B images, C channels, H x W grid of tokens, L = H * W, H' x W' grid of merged tokens,
L' = H' * W', K keys, nH heads, M side of a window, k side of the merged window.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils.checkpoint as cp
from timm.layers import DropPath
from timm.models.pvt_v2 import Attention, Block, PyramidVisionTransformerStage
from torch import Tensor, nn

from ltm_det.backbones.common.attention import attend
from ltm_det.backbones.common.kernels import at_least, merge_map, to_map, to_tokens
from ltm_det.backbones.common.spans import merger_chain, spans_of
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.cpu import Call, plain
from ltm_det.merging import Merger, kept_side


class LTMReducedAttention(nn.Module):
    """timm's attention to keys and values of a reduced map, from queries that may be others.

    Args:
        attn: timm's; its modules and their names are taken over.
    """

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.num_heads, self.scale = attn.num_heads, attn.scale
        self.q, self.kv, self.proj = attn.q, attn.kv, attn.proj
        self.sr, self.norm = attn.sr, attn.norm  # both None where nothing is reduced
        self.attn_drop, self.proj_drop = attn.attn_drop, attn.proj_drop

    def forward(self, y: Tensor, x: Tensor, grid: WindowGrid) -> Tensor:
        """Queries of y (B, L', C) to the same; keys and values are of x (B, L, C) on ``grid``."""
        q = self.q(y).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(self.reduced(x, grid))
        k, v = kv.unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, None, self.attn_drop, self.scale)  # (B, nH, L', C / nH)
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))

    def reduced(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """(B, L, C) to (B, K, C): a square of tokens becomes one. Where a map is smaller than the
        square it is filled up with zeros; rows and columns that fill none are left out, as timm
        does."""
        if self.sr is None:
            return x
        x = at_least(to_map(x, grid), self.sr.kernel_size[0])
        return self.norm(to_tokens(self.sr(x)))


class LTMPVTBlock(nn.Module):
    """timm's block: attention to the whole map, then an MLP with a convolution of 3 x 3 in it.

    Args:
        block: timm's; its modules and their names are taken over.
        drop_path: Share of images that skip its attention, or its MLP, in training.
        merger: What merges the sum of the block's input and of its attention's output for the MLP,
            whose update is restored; None for nothing.
    """

    def __init__(self, block: Block, drop_path: float, merger: Merger | None) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, LTMReducedAttention(block.attn)
        self.norm2, self.mlp = block.norm2, block.mlp
        self.drop_path, self.merger = DropPath(drop_path), merger

    def forward(
        self,
        y: Tensor,
        there: WindowGrid,
        x: Tensor,
        here: WindowGrid,
        state: Any = None,
        call: Call = plain,
    ) -> tuple[Tensor, Any]:
        """Tokens y (B, L', C) of the map ``there`` to the same, which ask the whole map x (B, L, C)
        of ``here``; in a dense block both are one. With the state of the merger's chain."""
        keys = self.norm1(x)
        queries = keys if y is x else self.norm1(y)
        y = y + self.drop_path(self.attn(queries, keys, here))
        if self.merger is None:
            return y + self.change(y, there), state
        merging, merged, state = merge_map(self.merger, y, there, state, call)
        return merging.update(y, self.change(merging.merge(y), merged)), state

    def change(self, y: Tensor, grid: WindowGrid) -> Tensor:
        """The MLP's update of tokens (B, L, C) on ``grid``, (B, L, C)."""
        return self.drop_path(self.mlp(self.norm2(y), [grid.height, grid.width]))


class LTMPVTStage(nn.Module):
    """A stage: a convolution that halves the map, but in the first; blocks, dense or merged; norm.

    Args:
        stage: timm's; its modules and their names are taken over.
        window: M, side of the windows that are merged.
        ratios: Compression ratio of each block; 1.0 is dense.
        scope: 'block' merges for each block's MLP alone; 'stage' before each run of blocks that
            keep the same k * k < M * M, whose queries and MLPs run on the merged tokens.
        merger: Type and options of the mergers.
        depths: Share of the backbone's blocks that come before each one.
        drops: Stochastic depth of each.
        with_cp: Whether blocks and mergers compute their activations again in the backward pass.
    """

    def __init__(
        self,
        stage: PyramidVisionTransformerStage,
        window: int,
        ratios: list[float],
        scope: str,
        merger: Mapping[str, Any],
        depths: list[float],
        drops: list[float],
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.downsample, self.norm = stage.downsample, stage.norm
        self.window, self.with_cp, tokens = window, with_cp, window**2
        (dim,) = stage.norm.normalized_shape
        kept = [kept_side(ratio, window) for ratio in ratios]
        self.kept = [side**2 for side in kept]
        sides = kept if scope == "stage" else [window] * len(kept)
        self.spans = spans_of(sides)
        each = self.kept if scope == "block" else [tokens] * len(kept)
        block_mergers = merger_chain(dim, window, each, merger, depths)
        self.blocks = nn.ModuleList(
            LTMPVTBlock(*args) for args in zip(stage.blocks, drops, block_mergers, strict=True)
        )
        starts = [span.start for span in self.spans]
        span_tokens, span_depths = [s.side**2 for s in self.spans], [depths[i] for i in starts]
        mergers = merger_chain(dim, window, span_tokens, merger, span_depths)
        self.mergers = nn.ModuleDict(  # by the block before which it merges
            {str(i): m for i, m in zip(starts, mergers, strict=True) if m is not None}
        )

    def forward(self, x: Tensor, call: Call = plain) -> Tensor:
        """The map before, (B, C, H, W), in the first stage (B, H, W, C), to (B, C', H', W').

        In a merged span, y are the merged tokens and x the map that they stand for,
        x + unmerge(y - y0): each block's queries are of y, its keys and values of x, reduced as
        they are in a dense block.
        """
        if self.downsample is not None:
            x = self.downsample(x)
        here = WindowGrid(x.shape[1], x.shape[2], self.window)
        x, state = x.flatten(1, 2), None
        for span in self.spans:
            blocks = [self.blocks[i] for i in range(span.start, span.stop)]
            if span.side == self.window:
                for block in blocks:
                    x, state = self.run(block, x, here, x, here, state, call)
            else:
                merger = self.mergers[str(span.start)]
                merging, there, state = self.run(merge_map, merger, x, here, state, call)
                x0, y0 = x, merging.merge(x)
                y = y0
                for block in blocks:
                    y, _ = self.run(block, y, there, x, here)
                    x = merging.update(x0, y - y0)
        return to_map(self.norm(x), here)

    def run(self, module: Any, *args: Any) -> Any:
        if self.with_cp and torch.is_grad_enabled():
            return cp.checkpoint(module, *args, use_reentrant=False)
        return module(*args)

    def extra_repr(self) -> str:
        return f"window={self.window}, kept tokens of {self.window**2} in each block={self.kept}"
