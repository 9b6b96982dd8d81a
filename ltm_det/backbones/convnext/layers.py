"""The blocks of LTMConvNeXt: timm's, whose MLPs may run on merged tokens.

Shapes: B images, C channels, H x W grid of tokens, W windows, N tokens in a window, P kept tokens,
M side of a window.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils.checkpoint as cp
from timm.layers import DropPath
from timm.models.convnext import ConvNeXtBlock, ConvNeXtStage
from torch import Tensor, nn

from ltm_det.backbones.common.kernels import at_least, to_map, to_tokens
from ltm_det.backbones.common.spans import merger_chain
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.cpu import Call, plain
from ltm_det.merging import Merger, kept_tokens


class LTMConvNeXtBlock(nn.Module):
    """timm's block: a depthwise convolution of the whole map, and an MLP, which may be merged.

    Args:
        block: timm's; its modules and their names are taken over.
        drop_path: Share of images that skip it in training.
        window: M of the merger.
        merger: What merges the convolution's output for the MLP, whose update is restored; None
            for nothing.
    """

    def __init__(
        self, block: ConvNeXtBlock, drop_path: float, window: int, merger: Merger | None
    ) -> None:
        super().__init__()
        self.conv_dw, self.norm, self.mlp = block.conv_dw, block.norm, block.mlp
        self.gamma = block.gamma
        self.drop_path = DropPath(drop_path)
        self.window, self.merger = window, merger

    def forward(self, x: Tensor, state: Any = None, call: Call = plain) -> tuple[Tensor, Any]:
        """(B, C, H, W) to the same, x + unmerge(change(merge(z))), z the convolution of x; with the
        state of the merger's chain."""
        z = self.conv_dw(x)
        if self.merger is None:
            return x + self.change(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), state
        grid = WindowGrid(x.shape[2], x.shape[3], self.window)
        x, z = grid.partition(to_tokens(x)), grid.partition(to_tokens(z))  # (B, W, N, C)
        merging, state = call(self.merger, z, state, grid.valid(z.device))
        x = merging.update(x, self.change(merging.merge(z)))
        return to_map(grid.reverse(x), grid), state

    def change(self, z: Tensor) -> Tensor:
        """What is added to the tokens z (B, *, C) of the convolution's output, (B, *, C)."""
        return self.drop_path(self.gamma * self.mlp(self.norm(z)))


class LTMConvNeXtStage(nn.Module):
    """A stage: a convolution that halves the map, but in the first; then blocks, dense or merged.

    Args:
        stage: timm's; its modules and their names are taken over.
        window: M, side of the windows that are merged.
        ratios: Compression ratio of each block; 1.0 is dense.
        merger: Type and options of the mergers.
        depths: Share of the backbone's blocks that come before each one.
        drops: Stochastic depth of each.
        with_cp: Whether blocks compute their activations again in the backward pass.
    """

    def __init__(
        self,
        stage: ConvNeXtStage,
        window: int,
        ratios: list[float],
        merger: Mapping[str, Any],
        depths: list[float],
        drops: list[float],
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.downsample = stage.downsample
        self.step = 1 if isinstance(stage.downsample, nn.Identity) else 2
        self.window, self.with_cp = window, with_cp
        self.kept = [kept_tokens(ratio, window**2) for ratio in ratios]
        dim = stage.blocks[0].conv_dw.out_channels
        mergers = merger_chain(dim, window, self.kept, merger, depths)
        self.blocks = nn.ModuleList(
            LTMConvNeXtBlock(block, drop, window, own)
            for block, drop, own in zip(stage.blocks, drops, mergers, strict=True)
        )

    def forward(self, x: Tensor, call: Call = plain) -> Tensor:
        """(B, C, H, W) to (B, C', H / 2, W / 2), halves rounded down, but to 1 at least."""
        x, state = self.downsample(at_least(x, self.step)), None
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x, state = cp.checkpoint(block, x, state, call, use_reentrant=False)
            else:
                x, state = block(x, state, call)
        return x

    def extra_repr(self) -> str:
        return f"window={self.window}, kept tokens of {self.window**2} in each block={self.kept}"
