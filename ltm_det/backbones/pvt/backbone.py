"""LTMPVTv2: timm's PVTv2 with merged tokens (arXiv 2106.13797 and 2407.15219).

Shapes: B images, C channels, H x W grid of tokens, M side of a window, k side of the merged window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from ltm_det import cpu
from ltm_det.backbones.common.arguments import check_start, parse_stages
from ltm_det.backbones.common.convolutional import RULES, ConvolutionalBackbone, check_outs, places
from ltm_det.backbones.common.kernels import check_keeps_grid
from ltm_det.backbones.common.weights import AccountedLoading
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.pvt.arguments import sizes_of
from ltm_det.backbones.pvt.layers import LTMPVTBlock, LTMPVTStage
from ltm_det.backbones.pvt.weights import PVTV2
from ltm_det.basics.arguments import checked
from ltm_det.merging import Merger


@MODELS.register_module()
class LTMPVTv2(AccountedLoading, ConvolutionalBackbone, BaseModule):
    """PVTv2 whose queries and MLPs run on learnably merged tokens.

    Parameters have timm's names. PVTv2 itself makes keys and values fewer: a convolution turns each
    square of tokens into one. Merging is of the other side, of the queries, and leaves that as it
    is: keys and values are those of the whole map. MLPs have a convolution of 3 x 3 in them, so
    that merged tokens lie on a grid of k x k for each window.

    Two ways to merge, see ``scope``. In 'stage' scope, the default, a map is merged once before a
    run of blocks; queries and MLPs are of merged tokens; after each block the change is restored to
    the whole map, of which the next block's keys and values are. In 'block' scope, the paper's, the
    MLP alone is merged. As in a Swin, the first block of a stage, or the first two of a long one,
    stays dense by default.

    Images smaller than a square of sr_ratio tokens, which timm refuses, are filled up with zeros
    there; exported files for any size take none so small.

    Args:
        arch: 'b0' to 'b5', or a dict of sizes with the names that
            :data:`.pvt.arguments.ARCHS` has.
        in_channels: Of the image.
        out_indices: Stages whose maps are given out, each behind its norm; those of the published
            models have strides 4, 8, 16 and 32.
        window_size: M, side in tokens of the windows that are merged.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from the first.
        with_cp: Whether blocks recompute their activations in the backward pass.
        frozen_stages: -1 freezes nothing, 0 the patch embedding, n > 0 also the first n stages.
        merger: None for the dense backbone, or a dict:

            - type: 'LTM' (learned), or 'Pool' (untrained area pooling): mergers that keep the grid.
            - compression_ratio: Kept fraction in (0, 1]: one number, one per stage, or for any
              stage a list with one per block. k * k tokens of a window are kept,
              k = round(M * sqrt(ratio)).
            - scope: 'stage' (default) or 'block', see :class:`.pvt.layers.LTMPVTStage`.
            - dense_blocks: Blocks that stay dense, see :func:`ltm_det.merging.ratio_schedule`.
            - whatever else the merger takes: for LTM ``mask`` and ``temperature``.
        init_cfg: None, or dict(type='Pretrained', checkpoint=...[, prefix, drop_mergers]), of
            timm's weights or the authors', see :mod:`.weights`.

    Raises:
        InputError: An argument is unknown, out of its range, or does not go with another.
    """

    family = PVTV2
    executors = {**cpu.merging.EXECUTORS}
    norm_eval = False  # there are no batch norms
    dense_by_default = None  # blocks, see ratio_schedule

    @checked(**RULES)
    def __init__(
        self,
        *,
        arch: str | Mapping[str, Any] = "b2",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        window_size: int = 4,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        merger: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        sizes = sizes_of(arch)
        self.depths = list(sizes["depths"])
        check_outs("LTMPVTv2", out_indices, frozen_stages, len(self.depths))
        check_start("LTMPVTv2", init_cfg)
        self.window, self.out_indices = window_size, tuple(out_indices)
        self.frozen_stages = frozen_stages

        network = PyramidVisionTransformerV2(in_channels, num_classes=0, **sizes)
        self.patch_embed = network.patch_embed
        self.strides = [4 * 2**i for i in range(len(self.depths))]
        ratios, scope, options = parse_stages(
            "LTMPVTv2", merger, self.depths, self.dense_by_default
        )
        check_keeps_grid("LTMPVTv2", merger)
        where = places(self.depths, drop_path_rate)
        self.stages = nn.ModuleList(
            LTMPVTStage(stage, window_size, own, scope, options, *place, with_cp=with_cp)
            for stage, own, place in zip(network.stages, ratios, where, strict=True)
        )
        self.freeze()

    @property
    def stem(self) -> nn.Module:
        """What comes before the stages."""
        return self.patch_embed

    def init_weights(self) -> None:
        """As timm starts them, or from init_cfg."""
        kept = [stage.kept for stage in self.stages]
        print_log(f"LTMPVTv2: each block keeps, of {self.window**2} tokens: {kept}", "current")
        super().init_weights()

    def mergers_by_point(self) -> dict[str, Merger]:
        """The mergers, by the name of their merge point, see :class:`MergePoint`."""
        points = {}
        for i, stage in enumerate(self.stages):
            for start, merger in stage.mergers.items():
                points[f"stages.{i}.blocks.{start}"] = merger
            for j, block in enumerate(stage.blocks):
                if block.merger is not None:
                    points[f"stages.{i}.blocks.{j}.mlp"] = block.merger
        return points

    def dense_points(self) -> dict[str, nn.Module]:
        """What reads the tokens first at each merge point that a merger could have."""
        points: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            if isinstance(module, LTMPVTBlock):
                points |= {name: module, f"{name}.mlp": module.norm2}
        return points

    def grid_of_block(self, name: str, image_size: tuple[int, int]) -> WindowGrid:
        """The map that a block's queries are of, for images of h x w pixels.

        Raises:
            ValueError: There is no such block.
        """
        if not isinstance(self.get_submodule(name), LTMPVTBlock):
            raise ValueError(f"{name!r} is no block: give one such as 'stages.3.blocks.1'")
        grid, _ = self.grid_at(name, image_size)
        _, stage, _, block = name.split(".")
        spans = self.stages[int(stage)].spans
        side = next(s.side for s in spans if s.start <= int(block) < s.stop)
        return grid if side == self.window else grid.shrunk(side)
