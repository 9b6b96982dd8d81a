"""LTMSwin: mmdet's Swin Transformer with merged tokens (arXiv 2103.14030 and 2407.15219).

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels, M side of the dense
window, k side of the merged window, H x W grid. A stage keeps its tokens in window layout
(B, W, N, C) from its start to its end.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmdet.models.backbones import SwinTransformer
from mmdet.models.backbones.swin import SwinBlockSequence
from mmdet.models.layers import PatchEmbed
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ltm_det import cpu
from ltm_det.backbones.common.weights import AccountedLoading
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.swin.layers import GridlessSwinBlock, LTMPatchMerging, LTMSwinBlock
from ltm_det.backbones.swin.weights import SWIN
from ltm_det.cpu import Call, plain
from ltm_det.merging import (
    MERGERS,
    Merger,
    build_merger,
    kept_side,
    kept_tokens,
    merger_options,
    ratio_schedule,
)

SCOPES = ("block", "stage")


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
        gridless = scope == "stage" and bool(merger) and not MERGERS[merger["type"]].keeps_grid
        if scope == "block" or gridless:
            sides = [self.window] * len(ratios)
            self.kept = block_tokens = [kept_tokens(r, tokens) for r in ratios]
        else:
            sides = [kept_side(r, self.window) for r in ratios]
            self.kept = [side**2 for side in sides]
            block_tokens = [tokens] * len(ratios)
        self.spans = _spans(sides)
        span_tokens = [span.side**2 for span in self.spans]

        dim = attn.w_msa.embed_dims
        block_mergers = _merger_chain(dim, self.window, block_tokens, merger, depths)
        self.blocks = ModuleList()
        for block, side, block_merger in zip(stage.blocks, sides, block_mergers, strict=True):
            kind = GridlessSwinBlock if gridless and block_merger is not None else LTMSwinBlock
            self.blocks.append(kind(block, side, block_merger))
        span_depths = [depths[span.start] for span in self.spans]
        span_mergers = _merger_chain(dim, self.window, span_tokens, merger, span_depths)
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
            blocks = self.blocks[span.start : span.stop]
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


def _spans(sides: list[int]) -> list[Span]:
    spans, start = [], 0
    for side, run in groupby(sides):
        stop = start + len(list(run))
        spans.append(Span(start, stop, side))
        start = stop
    return spans


def _merger_chain(
    dim: int, window: int, tokens: list[int], options: Mapping[str, Any], depths: list[float]
) -> list[Merger | None]:
    """A merger for each entry of ``tokens``, None where it is all of the window's; those of equal P
    follow on from one another."""
    mergers, previous = [], None
    for kept, depth in zip(tokens, depths, strict=True):
        if kept == window**2:
            mergers.append(None)
            continue
        place = dict(window=window, tokens=kept, chained=kept == previous, depth=depth)
        mergers.append(build_merger(dim=dim, **place, **options))
        previous = kept
    return mergers


@MODELS.register_module()
class LTMSwin(AccountedLoading, SwinTransformer):
    """Swin Transformer with learnable token merging, restored to full feature maps for FPN.

    Every argument of mmdet's SwinTransformer is taken, and its parameters keep their names, so
    that Swin checkpoints load. Differences from it: ``train()`` and ``eval()`` return the module,
    ``use_abs_pos_embed`` works at any input size, masks are cached per input size, and loading
    (mmdet's, timm's or the Swin repository's weights, recognised by their names, so that
    ``convert_weights`` has no say) accounts for every key, see :mod:`.weights`.

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

    family = SWIN
    executors = {
        PatchEmbed: cpu.swin.PATCH_EMBEDDING,
        LTMSwinBlock: cpu.swin.BLOCK,
        GridlessSwinBlock: cpu.swin.GRIDLESS_BLOCK,
        LTMPatchMerging: cpu.swin.PATCH_MERGING,
        nn.LayerNorm: cpu.swin.MAP_NORM,
        **cpu.merging.EXECUTORS,
    }

    def __init__(
        self,
        *,
        pretrain_img_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        merger: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> None:
        if pretrained := kwargs.pop("pretrained", None):  # mmdet's short form, which it then loses
            if kwargs.get("init_cfg"):
                raise ValueError(f"give init_cfg or pretrained={pretrained!r}, not both")
            kwargs["init_cfg"] = dict(type="Pretrained", checkpoint=pretrained)
        if not isinstance(pretrain_img_size, int) and len(pretrain_img_size) == 1:
            (pretrain_img_size,) = pretrain_img_size
        pretrain_img_size = to_2tuple(pretrain_img_size)
        super().__init__(pretrain_img_size=pretrain_img_size, patch_size=patch_size, **kwargs)
        self.pretrain_grid = tuple(side // patch_size for side in pretrain_img_size)
        strides = [self.patch_embed.projection.stride[0]]  # pixels of a token, by stage
        for stage in self.stages[:-1]:
            strides.append(strides[-1] * to_2tuple(stage.downsample.sampler.stride)[0])
        self.strides = strides
        depths = [len(stage.blocks) for stage in self.stages]
        ratios, scope, options = _parse_merger(merger, depths)
        before = (block / sum(depths) for block in range(sum(depths)))
        self.stages = ModuleList(
            LTMSwinStage(stage, r, scope, options, [next(before) for _ in r])
            for stage, r in zip(self.stages, ratios, strict=True)
        )

    def init_weights(self) -> None:
        """From scratch, or from init_cfg: type='Pretrained', checkpoint[, prefix, drop_mergers]."""
        kept = [stage.kept for stage in self.stages]
        window = self.stages[0].window
        print_log(f"LTMSwin: each block keeps, of {window**2} tokens a window, {kept}", "current")
        super().init_weights()

    def train(self, mode: bool = True) -> "LTMSwin":
        super().train(mode)
        return self

    def mergers_by_point(self) -> dict[str, Merger]:
        """The mergers, by the name of their merge point, see :class:`MergePoint`."""
        points = {}
        for i, stage in enumerate(self.stages):
            for start, merger in stage.mergers.items():
                points[f"stages.{i}.blocks.{start}"] = merger
            for j, block in enumerate(stage.blocks):
                if block.merger is not None:
                    reader = "" if isinstance(block, GridlessSwinBlock) else ".ffn"
                    points[f"stages.{i}.blocks.{j}{reader}"] = block.merger
        return points

    def dense_points(self) -> dict[str, nn.Module]:
        """What reads the tokens first at each merge point that a merger could have."""
        points: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            if isinstance(module, LTMSwinBlock):
                points |= {name: module, f"{name}.ffn": module.norm2}
        return points

    def shift_at(self, name: str) -> int:
        """By how many tokens the map is rolled back at a merge point."""
        _, i, _, j, *_ = name.split(".")
        block = self.stages[int(i)].blocks[int(j)]
        return block.attn.shift if isinstance(block, GridlessSwinBlock) else 0

    def grid_at(self, name: str, image_size: tuple[int, int]) -> tuple[WindowGrid, float]:
        """The map at a merge point for images of h x w pixels, and the pixels of a token."""
        i = int(name.split(".")[1])
        height, width = (-(-side // self.strides[i]) for side in image_size)
        return WindowGrid(height, width, self.stages[i].window), self.strides[i]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) of any size to the maps (B, C_i, H_i, W_i) of ``out_indices``."""
        call = cpu.choose(self.executors, x)
        x, hw = call(self.patch_embed, x)
        if self.use_abs_pos_embed:
            x = x + self._resized_pos_embed(hw)
        x = self.drop_after_pos(x)
        outs = []
        for i, stage in enumerate(self.stages):
            out_hw = hw
            x, hw, out = stage(x, hw, call)
            if i in self.out_indices:
                out = call(getattr(self, f"norm{i}"), out)
                outs.append(out.transpose(1, 2).unflatten(2, out_hw).contiguous())
        return outs

    def _resized_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        """(1, H * W, C): the absolute position embedding, resampled to the grid of the input."""
        if hw == self.pretrain_grid:
            return self.absolute_pos_embed
        embed = self.absolute_pos_embed.transpose(1, 2).unflatten(2, self.pretrain_grid)
        embed = F.interpolate(embed, size=hw, mode="bicubic", align_corners=False)
        return embed.flatten(2).transpose(1, 2)


def _parse_merger(
    merger: Mapping[str, Any] | None, depths: list[int]
) -> tuple[list[list[float]], str, dict[str, Any]]:
    """Ratios of all blocks, the scope, and the options left for the mergers themselves."""
    if merger is None:
        return [[1.0] * depth for depth in depths], "stage", {}
    options = merger_options(merger)
    scope = options.pop("scope", "stage")
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: choose one of {SCOPES}")
    ratios = ratio_schedule(
        options.pop("compression_ratio"), depths, options.pop("dense_blocks", None)
    )
    build_merger(dim=1, window=1, tokens=1, **options)  # bad options raise at any ratio
    return ratios, scope, options
