"""LTMSwin: mmdet's Swin Transformer with merged tokens (arXiv 2103.14030 and 2407.15219).

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels, M side of the dense
window, k side of the merged window, H x W grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmdet.models.backbones import SwinTransformer
from mmdet.models.layers import PatchEmbed
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ltm_det import cpu
from ltm_det.backbones.common.arguments import parse_stages
from ltm_det.backbones.common.weights import AccountedLoading
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.swin.arguments import RULES, check_stages
from ltm_det.backbones.swin.layers import GridlessSwinBlock, LTMPatchMerging, LTMSwinBlock
from ltm_det.backbones.swin.stage import LTMSwinStage
from ltm_det.backbones.swin.weights import SWIN
from ltm_det.basics.arguments import arguments_of, checked
from ltm_det.basics.errors import InputError
from ltm_det.merging import Merger


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
        InputError: An argument is unknown, out of its range, or does not go with another.
    """

    family = SWIN
    executors = {
        PatchEmbed: cpu.patches.PATCH_EMBEDDING,
        LTMSwinBlock: cpu.swin.BLOCK,
        GridlessSwinBlock: cpu.swin.GRIDLESS_BLOCK,
        LTMPatchMerging: cpu.patches.PATCH_MERGING,
        nn.LayerNorm: cpu.patches.MAP_NORM,
        **cpu.merging.EXECUTORS,
    }

    @checked(**RULES)
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
                raise InputError(f"give init_cfg or pretrained={pretrained!r}, not both")
            kwargs["init_cfg"] = dict(type="Pretrained", checkpoint=pretrained)
        named = dict(kwargs, patch_size=patch_size, pretrain_img_size=pretrain_img_size)
        check_stages("LTMSwin", arguments_of(LTMSwin) | named, named)
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
        ratios, scope, options = parse_stages("LTMSwin", merger, depths)
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

    def grid_of_block(self, name: str, image_size: tuple[int, int]) -> WindowGrid:
        """The map that a block runs on for images of h x w pixels.

        Raises:
            ValueError: There is no such block, or its tokens lie on no grid.
        """
        block = self.get_submodule(name)
        if not isinstance(block, LTMSwinBlock):
            raise ValueError(f"{name!r} is no block: give one such as 'stages.3.blocks.1'")
        if isinstance(block, GridlessSwinBlock):
            raise ValueError(f"the merged tokens of {name!r} lie on no grid: choose a dense block")
        (grid, _), (_, i, _, j) = self.grid_at(name, image_size), name.split(".")
        spans = self.stages[int(i)].spans
        side = next(span.side for span in spans if span.start <= int(j) < span.stop)
        return grid if side == grid.window else grid.merged(side)

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
