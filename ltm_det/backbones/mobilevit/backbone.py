"""LTMMobileViT: timm's MobileViT with merged tokens (arXiv 2110.02178 and 2407.15219).

Shapes: B images, C channels, H x W pixels of a map, M side of a window in patches, k side of the
merged window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.models.byobnet import ByobNet
from torch import nn

from ltm_det import cpu
from ltm_det.backbones.common.arguments import check_start, parse_stages
from ltm_det.backbones.common.convolutional import RULES, ConvolutionalBackbone, check_outs, places
from ltm_det.backbones.common.weights import AccountedLoading
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.mobilevit.arguments import PATCH, sizes_of, timm_config
from ltm_det.backbones.mobilevit.layers import (
    LTMMobileViTBlock,
    LTMMobileViTStage,
    LTMTransformerBlock,
)
from ltm_det.backbones.mobilevit.weights import MOBILEVIT
from ltm_det.basics.arguments import checked
from ltm_det.merging import Merger


@MODELS.register_module()
class LTMMobileViT(AccountedLoading, ConvolutionalBackbone, BaseModule):
    """MobileViT whose transformers run on learnably merged tokens.

    Parameters have timm's names. Maps of any size: those that whole patches do not fill are resized
    round each transformer, as timm does.

    Two ways to merge, see ``scope``. The paper's efficient block shares the MLP's update alone.
    A MobileViT's MLP is narrow (2C), and nearly half of its multiply-adds are convolutions', so
    that this saves a tenth at most; what the paper reports takes attention on merged tokens too.
    So the default is 'stage', merged once before a transformer and restored once after it.
    All of its blocks merge by default, other than in :class:`.LTMSwin`: what a dense first block is
    for there, computation of every token's own, the convolutions before and after a transformer do
    here, and the map before it goes to the fusion as it is.

    Args:
        arch: 'xxs', 'xs', 's', or a dict of sizes with the names that
            :data:`.mobilevit.arguments.ARCHS` has.
        in_channels: Of the image.
        out_indices: Stages whose maps are given out; those of the published models have strides
            2, 4, 8, 16 and 32.
        window_size: M, side in patches of the windows that are merged.
        drop_path_rate: Stochastic depth of the last transformer block; it grows linearly from the
            first.
        with_cp: Whether transformer blocks recompute their activations in the backward pass.
        frozen_stages: -1 freezes nothing, 0 the stem, n > 0 also the first n stages.
        norm_eval: Whether batch norms keep to their running statistics in training, as detectors
            trained on few images at a time want it. False to train from scratch.
        merger: None for the dense backbone, or a dict:

            - type: 'LTM' (learned) or any other of :data:`ltm_det.merging.MERGERS`.
            - compression_ratio: Kept fraction in (0, 1]: one number, one per transformer, or for
              any transformer a list with one per block. In block scope P = ceil(ratio * M * M)
              tokens of a window are kept, in stage scope P = round(M * sqrt(ratio))^2.
            - scope: 'stage' (default) or 'block', see :class:`.mobilevit.layers.LTMMobileViTBlock`.
            - dense_blocks: Blocks that stay dense, see :func:`ltm_det.merging.ratio_schedule`;
              none by default.
            - whatever else the merger takes: for LTM ``mask`` and ``temperature``.
        init_cfg: None, or dict(type='Pretrained', checkpoint=...[, prefix, drop_mergers]), of
            timm's weights, see :mod:`.weights`.

    Raises:
        InputError: An argument is unknown, out of its range, or does not go with another.
    """

    family = MOBILEVIT
    executors = {**cpu.merging.EXECUTORS}
    sequences = PATCH**2  # maps of an image in a transformer

    @checked(**RULES)
    def __init__(
        self,
        *,
        arch: str | Mapping[str, Any] = "s",
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        window_size: int = 4,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        merger: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        sizes = sizes_of(arch)
        check_outs("LTMMobileViT", out_indices, frozen_stages, len(sizes["channels"]))
        check_start("LTMMobileViT", init_cfg)
        self.window, self.out_indices = window_size, tuple(out_indices)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval

        network = ByobNet(timm_config(sizes), num_classes=0, in_chans=in_channels)
        self.stem = network.stem
        self.stages = nn.ModuleList(LTMMobileViTStage(*stage) for stage in network.stages)
        self.strides, stride = [], 2  # pixels between neighbours of each stage's map
        for step in sizes["strides"]:
            stride *= step
            self.strides.append(stride)

        self.merging_stages = [i for i, depth in enumerate(sizes["depths"]) if depth]
        self.depths = [sizes["depths"][i] for i in self.merging_stages]
        ratios, scope, options = parse_stages("LTMMobileViT", merger, self.depths, 0)
        where = places(self.depths, drop_path_rate)
        for i, own, place in zip(self.merging_stages, ratios, where, strict=True):
            block = self.stages[i][-1]
            self.stages[i][-1] = LTMMobileViTBlock(
                block, window_size, own, scope, options, *place, with_cp=with_cp
            )
        self.freeze()

    def init_weights(self) -> None:
        """As timm starts them, or from init_cfg."""
        kept = {f"stages.{i}": self.stages[i][-1].kept for i in self.merging_stages}
        print_log(f"LTMMobileViT: each block keeps, of {self.window**2} tokens: {kept}", "current")
        super().init_weights()

    def mergers_by_point(self) -> dict[str, Merger]:
        """The mergers, by the name of their merge point, see :class:`MergePoint`."""
        points = {}
        for name, module in self.named_modules():
            if isinstance(module, LTMMobileViTBlock):
                for start, merger in module.mergers.items():
                    points[f"{name}.transformer.{start}"] = merger
            elif isinstance(module, LTMTransformerBlock) and module.merger is not None:
                points[f"{name}.mlp"] = module.merger
        return points

    def dense_points(self) -> dict[str, nn.Module]:
        """What reads the tokens first at each merge point that a merger could have."""
        points: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            if isinstance(module, LTMTransformerBlock):
                points |= {name: module, f"{name}.mlp": module.norm2}
        return points

    def grid_at(self, name: str, image_size: tuple[int, int]) -> tuple[WindowGrid, float]:
        """The map at a merge point for images of h x w pixels, and the pixels of a token."""
        stage = int(name.split(".")[1])
        height, width = (-(-side // PATCH) for side in self.map_size(stage, image_size))
        return WindowGrid(height, width, self.window), self.strides[stage] * PATCH

    def grid_of_block(self, name: str, image_size: tuple[int, int]) -> WindowGrid:
        """The map that a block runs on for images of h x w pixels.

        Raises:
            ValueError: There is no such block, or its tokens lie on no grid.
        """
        if not isinstance(self.get_submodule(name), LTMTransformerBlock):
            raise ValueError(f"{name!r} is no block: give one such as 'stages.4.1.transformer.0'")
        grid, _ = self.grid_at(name, image_size)
        _, stage, _, _, block = name.split(".")
        whole = self.stages[int(stage)][-1]
        for span in whole.spans:
            if span.start <= int(block) < span.stop and span.side < self.window:
                merger = whole.mergers[str(span.start)]
                if not merger.keeps_grid:
                    raise ValueError(
                        f"the merged tokens of {name!r} lie on no grid: choose another"
                    )
                return grid.shrunk(span.side)
        return grid
