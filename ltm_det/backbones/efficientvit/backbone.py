"""LTMEfficientViT: timm's EfficientViT with merged tokens (arXiv 2205.14756 and 2407.15219).

Shapes: B images, C channels, H x W grid of tokens, M side of a window, k side of the merged window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.models.efficientvit_mit import EfficientVit
from torch import Tensor, nn

from ltm_det import cpu
from ltm_det.backbones.common.arguments import check_start, parse_stages
from ltm_det.backbones.common.convolutional import RULES, ConvolutionalBackbone, check_outs, places
from ltm_det.backbones.common.kernels import check_keeps_grid, to_tokens
from ltm_det.backbones.common.weights import AccountedLoading
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.efficientvit.arguments import PLAIN, sizes_of
from ltm_det.backbones.efficientvit.layers import (
    LTMEfficientViTBlock,
    LTMEfficientViTStage,
)
from ltm_det.backbones.efficientvit.weights import EFFICIENTVIT
from ltm_det.basics.arguments import checked
from ltm_det.basics.errors import InputError
from ltm_det.merging import Merger


@MODELS.register_module()
class LTMEfficientViT(AccountedLoading, ConvolutionalBackbone, BaseModule):
    """EfficientViT whose blocks with attention run on learnably merged tokens.

    Parameters have timm's names. A block is linear attention, with convolutions of 5 x 5 in it, and
    an MBConv, with one of 3 x 3: both read their neighbours, so that merged tokens lie on a grid of
    k x k for each window, and convolutions run on the map that these grids make. Attention counts a
    merged token as often as it has sources.

    Two ways to merge, see ``scope``. In 'block' scope, the paper's, an MBConv alone runs on merged
    tokens. In 'stage' scope, the default, a map is merged once after the convolution that halves
    it, and restored once at the stage's end: it saves attention too, and merges once for several
    blocks. All blocks with attention merge by default: that convolution is every token's own.

    Args:
        arch: 'b0' to 'b3', or a dict of sizes with the names that
            :data:`.efficientvit.arguments.ARCHS` has.
        in_channels: Of the image.
        out_indices: Stages whose maps are given out, of strides 4, 8, 16 and 32.
        window_size: M, side in tokens of the windows that are merged.
        drop_path_rate: Stochastic depth of the last block with attention; it grows linearly from
            the first.
        with_cp: Whether these blocks recompute their activations in the backward pass. It needs
            ``norm_eval``: batch norms would take each batch twice into their statistics.
        frozen_stages: -1 freezes nothing, 0 the stem, n > 0 also the first n stages.
        norm_eval: Whether batch norms keep to their running statistics in training, as detectors
            trained on few images at a time want it. False to train from scratch.
        merger: None for the dense backbone, or a dict:

            - type: 'LTM' (learned), or 'Pool' (untrained area pooling): mergers that keep the grid.
            - compression_ratio: Kept fraction in (0, 1]: one number, one per stage with attention,
              or for any such stage a list with one per block. P = round(M * sqrt(ratio))^2 tokens
              of a window are kept.
            - scope: 'stage' (default) or 'block', see
              :class:`.efficientvit.layers.LTMEfficientViTStage`.
            - dense_blocks: Blocks that stay dense, see :func:`ltm_det.merging.ratio_schedule`;
              none by default.
            - whatever else the merger takes: for LTM ``mask`` and ``temperature``.
        init_cfg: None, or dict(type='Pretrained', checkpoint=...[, prefix, drop_mergers]), of
            timm's weights, see :mod:`.weights`.

    Raises:
        InputError: An argument is unknown, out of its range, or does not go with another.
    """

    family = EFFICIENTVIT
    executors = {**cpu.merging.EXECUTORS}

    @checked(**RULES)
    def __init__(
        self,
        *,
        arch: str | Mapping[str, Any] = "b1",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
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
        stages = len(sizes["widths"]) - 1
        check_outs("LTMEfficientViT", out_indices, frozen_stages, stages)
        check_start("LTMEfficientViT", init_cfg)
        if with_cp and not norm_eval:
            raise InputError(
                "LTMEfficientViT: with_cp=True needs norm_eval=True: batch norms inside its blocks "
                "would take each batch twice into their statistics"
            )
        self.window, self.out_indices = window_size, tuple(out_indices)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval

        network = EfficientVit(
            in_channels,
            num_classes=0,
            head_widths=(1, 1),
            **sizes,  # its head is not taken
        )
        self.stem, self.stages = network.stem, nn.ModuleList(network.stages)
        self.strides = [4 * 2**i for i in range(stages)]
        self.merging_stages = [*range(PLAIN, stages)]  # stages whose tokens may be merged
        self.depths = [sizes["depths"][i + 1] for i in self.merging_stages]
        ratios, scope, options = parse_stages("LTMEfficientViT", merger, self.depths, 0)
        check_keeps_grid("LTMEfficientViT", merger)
        where = places(self.depths, drop_path_rate)
        for i, own, place in zip(self.merging_stages, ratios, where, strict=True):
            self.stages[i] = LTMEfficientViTStage(
                self.stages[i].blocks, window_size, own, scope, options, *place, with_cp=with_cp
            )
        self.freeze()

    def init_weights(self) -> None:
        """As timm starts them, or from init_cfg."""
        kept = {f"stages.{i}": self.stages[i].kept for i in self.merging_stages}
        print_log(f"LTMEfficientViT: each block keeps, of {self.window**2}: {kept}", "current")
        super().init_weights()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, h, w) of any size to the maps (B, C_i, H_i, W_i) of ``out_indices``."""
        call = cpu.choose(self.executors, x)
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x, call) if isinstance(stage, LTMEfficientViTStage) else stage(x)
            maps.append(x)
        return self.out_maps(maps)

    def mergers_by_point(self) -> dict[str, Merger]:
        """The mergers, by the name of their merge point, see :class:`MergePoint`."""
        points = {}
        for i in self.merging_stages:
            for start, merger in self.stages[i].mergers.items():
                points[f"stages.{i}.blocks.{start}"] = merger
            for j, block in enumerate(self.stages[i].blocks):
                if isinstance(block, LTMEfficientViTBlock) and block.local_module.merger:
                    points[f"stages.{i}.blocks.{j}.local_module"] = block.local_module.merger
        return points

    def dense_points(self) -> dict[str, nn.Module]:
        """What reads the tokens first at each merge point that a merger could have."""
        points: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            if isinstance(module, LTMEfficientViTBlock):
                points |= {name: module, f"{name}.local_module": module.local_module}
        return points

    def tokens_of(self, x: Tensor) -> Tensor:
        """(B, C, H, W), what a block reads, as tokens (B, H * W, C)."""
        return to_tokens(x)

    def grid_of_block(self, name: str, image_size: tuple[int, int]) -> WindowGrid:
        """The map that a block runs on for images of h x w pixels.

        Raises:
            ValueError: There is no such block.
        """
        if not isinstance(self.get_submodule(name), LTMEfficientViTBlock):
            raise ValueError(f"{name!r} is no block: give one such as 'stages.3.blocks.1'")
        grid, _ = self.grid_at(name, image_size)
        _, stage, _, block = name.split(".")
        spans = self.stages[int(stage)].spans
        side = next(s.side for s in spans if s.start < int(block) <= s.stop)
        return grid if side == self.window else grid.shrunk(side)
