"""The blocks of LTMEfficientViT: timm's, on maps of merged tokens.

Shapes: B images, H x W grid of tokens, H' x W' grid of merged tokens, W windows, N tokens in a
window, P kept tokens, C channels, nH heads (of all scales), D channels of a head.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from timm.layers import DropPath
from timm.models.efficientvit_mit import EfficientVitBlock, LiteMLA, ResidualBlock
from torch import Tensor, nn

from ltm_det.backbones.common.kernels import merge_map, to_map, to_tokens
from ltm_det.backbones.common.spans import merger_chain, spans_of
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.cpu import Call, plain
from ltm_det.merging import Merger, Merging, kept_side
from ltm_det.merging.base import autocast_is_on


class MergedMap(NamedTuple):
    """How a map is merged onto a smaller one, and back.

    Attributes:
        merging: Of tokens (B, H * W, C) and (B, H' * W', C).
        here: The map's windows.
        there: The merged map's.
    """

    merging: Merging
    here: WindowGrid
    there: WindowGrid

    def merge(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W'), without gaps, see :func:`.common.kernels.filled`."""
        return to_map(self.merging.merge(to_tokens(x)), self.there)

    def update(self, x: Tensor, change: Tensor) -> Tensor:
        """The map x (B, C, H, W) after the merged one changed by ``change`` (B, C, H', W')."""
        return to_map(self.merging.update(to_tokens(x), to_tokens(change)), self.here)

    def sources(self, x: Tensor) -> Tensor:
        """(B, H' * W', 1), how often attention counts each merged token of the map x: as often as
        it has sources, where the merger keeps that. All together count as x does, H * W times."""
        cells = self.there.height * self.there.width
        counts = x.new_ones(x.shape[0], cells, dtype=torch.float32)
        if self.merging.key_bias is not None:
            counts = counts * self.merging.key_bias.float().exp()
        total = self.here.height * self.here.width
        return (counts * (total / counts.sum(1, keepdim=True))).to(x.dtype)[..., None]


def merged_map(merger: Merger, x: Tensor, state: Any, window: int, call: Call = plain) -> Any:
    """How ``merger`` merges a map x (B, C, H, W), and the state of its chain."""
    here = WindowGrid(x.shape[2], x.shape[3], window)
    merging, there, state = merge_map(merger, to_tokens(x), here, state, call)
    return MergedMap(merging, here, there), state


class GroupedPointwise(nn.Conv2d):
    """A convolution of 1 x 1 in groups as one batched product: torch runs group by group on a CPU.

    Args:
        conv: torch's; its weight and bias are taken over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        sizes = dict(groups=conv.groups, bias=conv.bias is not None, device="meta")
        super().__init__(conv.in_channels, conv.out_channels, 1, **sizes)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H, W)."""
        weight = self.weight.flatten(1).unflatten(0, (self.groups, -1))  # (groups, D', C')
        own = x.flatten(2).unflatten(1, (self.groups, -1))  # (B, groups, C', H * W)
        out = (weight @ own).flatten(1, 2).unflatten(2, x.shape[2:])
        return out if self.bias is None else out + self.bias[:, None, None]


class LTMLiteMLA(nn.Module):
    """timm's multi-scale linear attention, in which a token may count for several.

    Args:
        attn: timm's; its modules and their names are taken over.
    """

    def __init__(self, attn: LiteMLA) -> None:
        super().__init__()
        self.qkv, self.proj = attn.qkv, attn.proj
        self.aggreg = nn.ModuleList(
            nn.Sequential(near, GroupedPointwise(mix)) for near, mix in attn.aggreg
        )
        self.kernel_func, self.eps, self.dim = attn.kernel_func, attn.eps, attn.dim

    def forward(self, x: Tensor, sources: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to the same; sources (B, H * W, 1) is how often each token counts."""
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.aggreg)], dim=1)
        heads = qkv.shape[1] // (3 * self.dim)
        qkv = qkv.flatten(2).unflatten(1, (heads, 3 * self.dim)).transpose(2, 3)
        q, k, v = qkv.chunk(3, dim=-1)  # each (B, nH, H * W, D)
        q, k = self.kernel_func(q), self.kernel_func(k)
        if sources is not None:
            k = k * sources[:, None]
        if autocast_is_on(x.device):
            with torch.autocast(x.device.type, enabled=False):
                out = self.attend(q, k, v)
        else:
            out = self.attend(q, k, v)
        out = out.transpose(2, 3).flatten(1, 2).unflatten(2, (x.shape[2], x.shape[3]))
        return self.proj(out)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (k^T v) / (q k^T 1 + eps), (B, nH, H * W, D), in float32 at least.

        A query that no key answers gets 0, as of 0 / eps, whose gradient would overflow float16.
        """
        full = torch.promote_types(v.dtype, torch.float32)
        q, k, ones = q.to(full), k.to(full), F.pad(v.to(full), (0, 1), value=1.0)
        out = q @ (k.transpose(-1, -2) @ ones)
        total = out[..., -1:]
        return (out[..., :-1] / torch.where(total > 0, total + self.eps, 1)).to(v.dtype)


class LTMResidual(nn.Module):
    """x + f(x), or with a merger x + unmerge(f(merge(x))).

    Args:
        main: f.
        drop_path: Share of images that skip it in training.
        window: M of the merger.
        merger: What merges the tokens that f reads, or None.
    """

    def __init__(
        self, main: nn.Module, drop_path: float, window: int, merger: Merger | None = None
    ) -> None:
        super().__init__()
        self.main, self.merger, self.window = main, merger, window
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """(B, C, H, W) to the same, without its merger."""
        return x + self.drop_path(self.main(x, *args))

    def merged(self, x: Tensor, state: Any, call: Call) -> tuple[Tensor, Any]:
        """As `forward`, with the state of the merger's chain; on merged tokens."""
        merging, state = merged_map(self.merger, x, state, self.window, call)
        return merging.update(x, self.drop_path(self.main(merging.merge(x)))), state


class LTMEfficientViTBlock(nn.Module):
    """timm's block: linear attention, then an MBConv, which may run on merged tokens.

    Args:
        block: timm's; its modules and their names are taken over.
        drop_path: Share of images that skip its attention, or its MBConv, in training.
        window: M of the merger.
        merger: What merges the sum of the block's input and of its attention's output for the
            MBConv, whose update is restored; None for nothing.
    """

    def __init__(
        self, block: EfficientVitBlock, drop_path: float, window: int, merger: Merger | None
    ) -> None:
        super().__init__()
        attn = LTMLiteMLA(block.context_module.main)
        self.context_module = LTMResidual(attn, drop_path, window)
        self.local_module = LTMResidual(block.local_module.main, drop_path, window, merger)

    def forward(
        self, x: Tensor, state: Any = None, sources: Tensor | None = None, call: Call = plain
    ) -> tuple[Tensor, Any]:
        """(B, C, H, W) and the merger chain's state to the same, see `LTMLiteMLA`."""
        x = self.context_module(x, sources)
        if self.local_module.merger is None:
            return self.local_module(x), state
        return self.local_module.merged(x, state, call)


class LTMEfficientViTStage(nn.Module):
    """A stage with attention: an MBConv that halves the map, then blocks, dense or merged.

    Args:
        blocks: timm's.
        window: M, side of the windows that are merged.
        ratios: Compression ratio of each block after the first; 1.0 is dense.
        scope: 'block' merges for each block's MBConv; 'stage' before each run of blocks that keep
            the same k * k < M * M, and restores after it.
        merger: Type and options of the mergers.
        depths: Share of the backbone's blocks with attention that come before each one.
        drops: Stochastic depth of each.
        with_cp: Whether blocks and mergers compute their activations again in the backward pass.
    """

    def __init__(
        self,
        blocks: nn.Sequential,
        window: int,
        ratios: list[float],
        scope: str,
        merger: Mapping[str, Any],
        depths: list[float],
        drops: list[float],
        with_cp: bool,
    ) -> None:
        super().__init__()
        first: ResidualBlock = blocks[0]
        self.window, self.with_cp, tokens = window, with_cp, window**2
        dim = first.main.point_conv.conv.out_channels
        sides = [kept_side(r, window) if scope == "stage" else window for r in ratios]
        each = [kept_side(r, window) ** 2 if scope == "block" else tokens for r in ratios]
        self.kept = each if scope == "block" else [side**2 for side in sides]
        self.spans = spans_of(sides)
        block_mergers = merger_chain(dim, window, each, merger, depths)
        own = [
            LTMEfficientViTBlock(block, drop, window, m)
            for block, drop, m in zip(list(blocks)[1:], drops, block_mergers, strict=True)
        ]
        self.blocks = nn.ModuleList([first, *own])
        starts = [span.start for span in self.spans]
        span_tokens, span_depths = [s.side**2 for s in self.spans], [depths[i] for i in starts]
        mergers = merger_chain(dim, window, span_tokens, merger, span_depths)
        self.mergers = nn.ModuleDict(  # by the block before which it merges
            {str(i + 1): m for i, m in zip(starts, mergers, strict=True) if m is not None}
        )

    def forward(self, x: Tensor, call: Call = plain) -> Tensor:
        """(B, C, H, W) to (B, C', H / 2, W / 2), halves rounded up: x + unmerge(y - y0) of each
        merged span."""
        first, *blocks = self.blocks
        x, state = first(x), None
        for span in self.spans:
            if span.side == self.window:
                for block in blocks[span.start : span.stop]:
                    x, state = self.run(block, x, state, None, call)
            else:
                merger = self.mergers[str(span.start + 1)]
                merging, state = self.run(merged_map, merger, x, state, self.window, call)
                sources = merging.sources(x)
                y = y0 = merging.merge(x)
                for block in blocks[span.start : span.stop]:
                    y, _ = self.run(block, y, None, sources, call)
                x = merging.update(x, y - y0)
        return x

    def run(self, module: Any, *args: Any) -> Any:
        if self.with_cp and torch.is_grad_enabled():
            return cp.checkpoint(module, *args, use_reentrant=False)
        return module(*args)

    def extra_repr(self) -> str:
        return f"window={self.window}, kept tokens of {self.window**2} in each block={self.kept}"
