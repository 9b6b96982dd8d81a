"""The block of LTMMobileViT: timm's, with a transformer on merged tokens.

Shapes: B images, H x W pixels of a map, p * p pixels of a patch, n * m patches, V = B * p * p
sequences of L = n * m tokens (one of each patch), W windows, N tokens in a window, P kept tokens,
C channels, nH heads.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from timm.layers import Attention, DropPath
from timm.models.mobilevit import MobileVitBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ltm_det.backbones.common.attention import attend
from ltm_det.backbones.common.cues import attention_cues
from ltm_det.backbones.common.maps import merged_grid, on_maps
from ltm_det.backbones.common.spans import merger_chain, spans_of
from ltm_det.backbones.common.windows import WindowGrid, divides
from ltm_det.cpu import Call, plain
from ltm_det.merging import Merger, Merging, kept_side, kept_tokens


class SequenceAttention(nn.Module):
    """timm's attention of every token of a sequence to every other; it knows no positions.

    Args:
        attn: timm's; its modules and their names are taken over.
    """

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.num_heads, self.scale = attn.num_heads, attn.scale
        self.qkv, self.proj = attn.qkv, attn.proj
        self.attn_drop, self.proj_drop = attn.attn_drop, attn.proj_drop

    def forward(self, x: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """(V, L, C) to the same; key_bias (V, L) is added to the logits of each key."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None if key_bias is None else key_bias[:, None, None].to(q.dtype)
        x = attend(q, k, v, bias, self.attn_drop, self.scale)  # (V, nH, L, C / nH)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class ImageDropPath(DropPath):
    """Stochastic depth by image, whose sequences are skipped together.

    Args:
        share: Of images that skip what is dropped, in training.
        sequences: p * p, of an image.
    """

    def __init__(self, share: float, sequences: int) -> None:
        super().__init__(share)
        self.sequences = sequences

    def forward(self, x: Tensor) -> Tensor:
        """(V, *) to the same."""
        images = x.shape[0] // self.sequences
        return super().forward(x.unflatten(0, (images, self.sequences))).flatten(0, 1)


class LTMTransformerBlock(nn.Module):
    """timm's transformer block, which may share its MLP's update among merged tokens.

    Args:
        block: timm's; its modules and their names are taken over.
        drop_path: Of attention and of MLP, in training.
        merger: What merges the sum of the block's input and of its attention's output, before the
            MLP, and restores it after it; None for nothing.
    """

    def __init__(self, block: Block, drop_path: nn.Module, merger: Merger | None) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, SequenceAttention(block.attn)
        self.norm2, self.mlp = block.norm2, block.mlp
        self.drop_path = drop_path
        self.merger = merger

    def forward(
        self, x: Tensor, grid: WindowGrid, state: Any = None, key_bias: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """(V, L, C) and the merger chain's state to the same; key_bias is (V, L) or (1, L)."""
        z = self.norm1(x)
        x = x + self.drop_path(self.attn(z, key_bias))
        if self.merger is None:
            return x + self.drop_path(self.mlp(self.norm2(x))), state
        valid = grid.valid(x.device)
        x = grid.partition(x)  # (V, W, N, C)
        merging, state = self.merger(x, state, valid, self.cues(z, grid, self.merger))
        change = self.drop_path(self.mlp(self.norm2(merging.merge(x))))
        return grid.reverse(merging.update(x, change)), state

    def cues(self, z: Tensor, grid: WindowGrid, merger: Merger) -> Any:
        """What a merger reads of the attention's input z (V, L, C)."""
        z = grid.partition(z) if merger.reads else z
        valid = grid.valid(z.device)
        return attention_cues(self.attn.qkv, self.attn.num_heads, z, merger.reads, valid)


class LTMMobileViTBlock(nn.Module):
    """timm's MobileViT block: convolutions, a transformer between patches, and their fusion.

    Each pixel of a patch is a token of a sequence of its own, which holds the pixels at that place
    of all patches. Merged are windows of M x M patches, in each sequence for itself.

    Args:
        block: timm's; its modules and their names are taken over.
        window: M.
        ratios: Compression ratio of each block of the transformer; 1.0 is dense.
        scope: 'block' merges after each block's attention and restores after its MLP; 'stage'
            merges before each run of blocks that keep the same k * k < M * M, and restores after.
        merger: Type and options of the mergers.
        depths: Share of the backbone's transformer blocks that come before each one.
        drops: Stochastic depth of each.
        with_cp: Whether transformer blocks and mergers compute their activations again in the
            backward pass.
    """

    def __init__(
        self,
        block: MobileVitBlock,
        window: int,
        ratios: list[float],
        scope: str,
        merger: Mapping[str, Any],
        depths: list[float],
        drops: list[float],
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.conv_kxk, self.conv_1x1 = block.conv_kxk, block.conv_1x1
        self.norm, self.conv_proj = block.norm, block.conv_proj
        self.conv_fusion = block.conv_fusion
        self.patch, self.window, self.with_cp = block.patch_size[0], window, with_cp
        tokens, dim = window**2, block.conv_1x1.out_channels
        sides = [kept_side(r, window) if scope == "stage" else window for r in ratios]
        each = [kept_tokens(r, tokens) if scope == "block" else tokens for r in ratios]
        self.kept = each if scope == "block" else [side**2 for side in sides]
        self.spans = spans_of(sides)
        block_mergers = merger_chain(dim, window, each, merger, depths)
        paths = [ImageDropPath(share, block.patch_area) for share in drops]
        self.transformer = nn.ModuleList(
            LTMTransformerBlock(*args)
            for args in zip(block.transformer, paths, block_mergers, strict=True)
        )
        starts = [span.start for span in self.spans]
        span_tokens, span_depths = [s.side**2 for s in self.spans], [depths[i] for i in starts]
        mergers = merger_chain(dim, window, span_tokens, merger, span_depths)
        self.mergers = nn.ModuleDict(  # by the block before which it merges
            {str(i): m for i, m in zip(starts, mergers, strict=True) if m is not None}
        )

    def forward(self, x: Tensor, call: Call = plain) -> Tensor:
        """(B, C, H, W) to the same; ``call`` is how its parts are called, see ltm_det.cpu.door."""
        y = self.conv_1x1(self.conv_kxk(x))
        tokens, patches = self.unfold(y)
        tokens = self.norm(self.transform(tokens, WindowGrid(*patches, self.window), call))
        y = self.conv_proj(self.fold(tokens, patches, (y.shape[2], y.shape[3])))
        return self.conv_fusion(torch.cat([x, y], dim=1))

    def transform(self, x: Tensor, grid: WindowGrid, call: Call) -> Tensor:
        """The transformer, (V, L, C) to the same: x + unmerge(y - y0) of each merged span."""
        state = None
        for span in self.spans:
            blocks = [self.transformer[i] for i in range(span.start, span.stop)]
            if span.side == self.window:
                for block in blocks:
                    x, state = self.run(call, block, x, grid, state)
            else:
                merging, state = self.merge(call, blocks[0], span.start, x, grid, state)
                y = y0 = merging.merge(x)
                for block in blocks:
                    y, _ = self.run(call, block, y, grid, None, merging.key_bias)
                x = merging.update(x, y - y0)
        return x

    def merge(
        self,
        call: Call,
        reader: LTMTransformerBlock,
        start: int,
        x: Tensor,
        grid: WindowGrid,
        state: Any,
    ) -> tuple[Merging, Any]:
        """How sequences x (V, L, C) are merged before the block ``reader``."""
        merger = self.mergers[str(start)]
        cues = reader.cues(reader.norm1(x) if merger.reads else x, grid, merger)
        windows, state = self.run(
            call, merger, grid.partition(x), state, grid.valid(x.device), cues
        )
        return on_maps(windows, grid, merged_grid(grid, merger)), state

    def run(self, call: Call, module: Callable[..., Any], *args: Any) -> Any:
        if self.with_cp and torch.is_grad_enabled():
            return cp.checkpoint(call, module, *args, use_reentrant=False)
        return call(module, *args)

    def unfold(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) to sequences (V, L, C) and (n, m); a map that no whole patches fill is
        resized to one that they do."""
        p, (height, width) = self.patch, x.shape[2:]
        n, m = (height + p - 1) // p, (width + p - 1) // p  # ONNX: no negatives
        if not (divides(p, height) and divides(p, width)):
            x = F.interpolate(x, (n * p, m * p), mode="bilinear", align_corners=False)
        x = x.unflatten(3, (m, p)).unflatten(2, (n, p))  # (B, C, n, p, m, p)
        return x.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(0, 2), (n, m)

    def fold(self, x: Tensor, patches: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Sequences (V, L, C) to (B, C, H, W), the way back."""
        p, (n, m) = self.patch, patches
        x = x.unflatten(1, (n, m)).unflatten(0, (x.shape[0] // p**2, p, p))
        x = x.permute(0, 5, 3, 1, 4, 2).flatten(4, 5).flatten(2, 3)  # (B, C, n * p, m * p)
        if not (divides(p, size[0]) and divides(p, size[1])):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x

    def extra_repr(self) -> str:
        return f"window={self.window}, kept tokens of {self.window**2} in each block={self.kept}"


class LTMMobileViTStage(nn.Sequential):
    """Inverted residuals, and in some stages a MobileViT block after them."""

    def forward(self, x: Tensor, call: Call = plain) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), see `LTMMobileViTBlock`."""
        for block in self:
            x = block(x, call) if isinstance(block, LTMMobileViTBlock) else block(x)
        return x
