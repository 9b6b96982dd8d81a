"""A stage of LTMSwin: which of its blocks run on merged tokens.

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels, M side of the dense
window, k side of the merged window, H x W grid. A stage keeps its tokens in window layout
(B, W, N, C) from its start to its end.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmdet.models.backbones.swin import SwinBlockSequence
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from ltm_det.backbones.common.spans import merger_chain, spans_of
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.swin.layers import GridlessSwinBlock, LTMPatchMerging, LTMSwinBlock
from ltm_det.cpu import Call, plain
from ltm_det.merging import MERGERS, kept_side, kept_tokens


class LTMSwinStage(BaseModule):
    """A stage of LTMSwin: spans of dense blocks and spans of blocks on merged tokens.

    Args:
        stage: mmdet's stage; its modules and their names are taken over.
        ratios: Compression ratio of each block; 1.0 is a dense block.
        scope: 'block' merges before each block's MLP and restores after it; 'stage' merges at the
            start of each run of blocks that keep the same k < M and restores at its end, or where
            the merger keeps no grid, before and after every block.
        merger: Type and options of the mergers.
        depths: Share of the backbone's blocks that come before each block.
    """

    def __init__(
        self,
        stage: SwinBlockSequence,
        ratios: list[float],
        scope: str,
        merger: Mapping[str, Any],
        depths: list[float],
    ) -> None:
        super().__init__()
        attn = stage.blocks[0].attn
        self.window, tokens = attn.window_size, attn.window_size**2
        gridless = (
            scope == "stage" and bool(merger) and not MERGERS[merger["type"]].grid_with(merger)
        )
        if scope == "block" or gridless:
            sides = [self.window] * len(ratios)
            self.kept = block_tokens = [kept_tokens(r, tokens) for r in ratios]
        else:
            sides = [kept_side(r, self.window) for r in ratios]
            self.kept = [side**2 for side in sides]
            block_tokens = [tokens] * len(ratios)
        self.spans = spans_of(sides)
        span_tokens = [span.side**2 for span in self.spans]

        dim = attn.w_msa.embed_dims
        block_mergers = merger_chain(dim, self.window, block_tokens, merger, depths)
        self.blocks = ModuleList()
        for block, side, block_merger in zip(stage.blocks, sides, block_mergers, strict=True):
            kind = GridlessSwinBlock if gridless and block_merger is not None else LTMSwinBlock
            self.blocks.append(kind(block, side, block_merger))
        span_depths = [depths[span.start] for span in self.spans]
        span_mergers = merger_chain(dim, self.window, span_tokens, merger, span_depths)
        self.mergers = nn.ModuleDict(  # by the block before which it merges
            {
                str(span.start): m
                for span, m in zip(self.spans, span_mergers, strict=True)
                if m is not None
            }
        )
        self.with_cp = stage.blocks[0].with_cp
        self.downsample = stage.downsample
        if self.downsample is not None and LTMPatchMerging.fits(self.downsample):
            self.downsample = LTMPatchMerging(self.downsample)

    def forward(
        self, x: Tensor, hw: tuple[int, int], call: Call = plain
    ) -> tuple[Tensor, tuple[int, int], Tensor]:
        """(B, H * W, C) to the next stage's input and its (H, W), and to this stage's output.

        ``call`` is how its parts are called, see :mod:`ltm_det.cpu.door`.
        """
        grid = WindowGrid(*hw, self.window)
        x, state = grid.partition(x), None
        for span in self.spans:
            blocks = [self.blocks[i] for i in range(span.start, span.stop)]
            if span.side == self.window:
                for block in blocks:
                    x, state = call(block, x, grid, state)
            else:
                merger, valid = self.mergers[str(span.start)], grid.valid(x.device)
                merging, state = self.checkpointed(call, merger, x, state, valid)
                y = y0 = merging.merge(x)  # (B, W, P, C)
                for block in blocks:
                    y, _ = call(block, y, grid.merged(span.side), None, merging.key_bias)
                x = merging.update(x, y - y0)
        out = grid.reverse(x)
        if self.downsample is None:
            return out, hw, out
        return *call(self.downsample, out, hw), out

    def checkpointed(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``, computed again in the backward pass where ``with_cp`` says so."""
        if self.with_cp and torch.is_grad_enabled():
            return cp.checkpoint(function, *args, use_reentrant=False)
        return function(*args)

    def extra_repr(self) -> str:
        return f"window={self.window}, kept tokens of {self.window**2} in each block={self.kept}"
