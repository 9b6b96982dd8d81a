"""LTMConvNeXt: timm's ConvNeXt with merged tokens (arXiv 2201.03545 and 2407.15219).

Shapes: B images, C channels, H x W grid of tokens, M side of a window, N = M * M, P kept tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ltm_det import cpu
from ltm_det.backbones.common.arguments import check_start, parse_stages
from ltm_det.backbones.common.convolutional import RULES, ConvolutionalBackbone, check_outs, places
from ltm_det.backbones.common.kernels import at_least
from ltm_det.backbones.common.weights import AccountedLoading
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.convnext.arguments import sizes_of, timm_sizes
from ltm_det.backbones.convnext.layers import LTMConvNeXtBlock, LTMConvNeXtStage
from ltm_det.backbones.convnext.weights import CONVNEXT
from ltm_det.basics.arguments import checked
from ltm_det.merging import Merger

PATCH = 4  # pixels of a patch's side


@MODELS.register_module()
class LTMConvNeXt(AccountedLoading, ConvolutionalBackbone, BaseModule):
    """ConvNeXt whose MLPs run on learnably merged tokens.

    Parameters have timm's names. A block is a depthwise convolution of 7 x 7, and an MLP with 4C
    channels inside, which has nearly all of its multiply-adds. The convolution is always that of
    the whole map; its output's tokens are merged in windows of M x M, the MLP's update is computed
    for P of them and restored. Nothing else reads merged tokens, so that any merger will do; those
    that match tokens compare them themselves, since there are no keys.

    There is one way to merge, the paper's, block by block: a convolution comes before every MLP,
    and it wants the map. As in a Swin, the first block of a stage, or the first two of a long one,
    stays dense by default.

    Pixels and tokens that fill no square of 4 x 4 or 2 x 2 are left out, as timm does; what is
    smaller than one such square, which timm refuses, is filled up with zeros.

    Args:
        arch: 't', 's', 'b', or a dict of sizes with the names that
            :data:`.convnext.arguments.ARCHS` has.
        in_channels: Of the image.
        out_indices: Stages whose maps are given out; those of the published models have strides 4,
            8, 16 and 32.
        window_size: M, side in tokens of the windows that are merged.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from the first.
        with_cp: Whether blocks recompute their activations in the backward pass.
        frozen_stages: -1 freezes nothing, 0 the stem, n > 0 also the first n stages.
        merger: None for the dense backbone, or a dict:

            - type: 'LTM' (learned) or any other of :data:`ltm_det.merging.MERGERS`.
            - compression_ratio: Kept fraction in (0, 1]: one number, one per stage, or for any
              stage a list with one per block. P = ceil(ratio * M * M) tokens of a window are kept.
            - dense_blocks: Blocks that stay dense, see :func:`ltm_det.merging.ratio_schedule`.
            - whatever else the merger takes: for LTM ``mask`` and ``temperature``.
        init_cfg: None, or dict(type='Pretrained', checkpoint=...[, prefix, drop_mergers]), of
            timm's weights or the authors', see :mod:`.weights`.

    Raises:
        InputError: An argument is unknown, out of its range, or does not go with another.
    """

    family = CONVNEXT
    executors = {**cpu.merging.EXECUTORS}
    norm_eval = False  # there are no batch norms
    dense_by_default = None  # blocks, see ratio_schedule

    @checked(**RULES)
    def __init__(
        self,
        *,
        arch: str | Mapping[str, Any] = "t",
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
        stages = len(self.depths)
        check_outs("LTMConvNeXt", out_indices, frozen_stages, stages)
        check_start("LTMConvNeXt", init_cfg)
        self.window, self.out_indices = window_size, tuple(out_indices)
        self.frozen_stages = frozen_stages

        network = ConvNeXt(in_channels, num_classes=0, **timm_sizes(sizes))
        self.stem = network.stem
        self.strides = [PATCH * 2**i for i in range(stages)]
        ratios, _, options = parse_stages("LTMConvNeXt", merger, self.depths, self.dense_by_default)
        where = places(self.depths, drop_path_rate)
        self.stages = nn.ModuleList(
            LTMConvNeXtStage(stage, window_size, own, options, *place, with_cp=with_cp)
            for stage, own, place in zip(network.stages[:stages], ratios, where, strict=True)
        )
        self.freeze()

    def init_weights(self) -> None:
        """As timm starts them, or from init_cfg."""
        kept = [stage.kept for stage in self.stages]
        print_log(f"LTMConvNeXt: each block keeps, of {self.window**2} tokens: {kept}", "current")
        super().init_weights()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, h, w) of any size to the maps (B, C_i, H_i, W_i) of ``out_indices``."""
        return super().forward(at_least(x, PATCH))

    def mergers_by_point(self) -> dict[str, Merger]:
        """The mergers, by the name of their merge point, see :class:`MergePoint`."""
        return {
            f"{name}.mlp": module.merger
            for name, module in self.named_modules()
            if isinstance(module, LTMConvNeXtBlock) and module.merger is not None
        }

    def dense_points(self) -> dict[str, nn.Module]:
        """What reads the tokens first at each merge point that a merger could have."""
        return {
            f"{name}.mlp": module.norm
            for name, module in self.named_modules()
            if isinstance(module, LTMConvNeXtBlock)
        }

    def tokens_of(self, x: Tensor) -> Tensor:
        """(B, H, W, C), what a dense block's MLP reads, as tokens (B, H * W, C)."""
        return x.flatten(1, 2)

    def map_size(self, stage: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a stage's map for images of h x w pixels: halves are rounded down."""
        height, width = (max(1, side // self.strides[stage]) for side in image_size)
        return height, width

    def grid_of_block(self, name: str, image_size: tuple[int, int]) -> WindowGrid:
        """The map of a block for images of h x w pixels: that of its convolution, the whole one.

        Raises:
            ValueError: There is no such block.
        """
        if not isinstance(self.get_submodule(name), LTMConvNeXtBlock):
            raise ValueError(f"{name!r} is no block: give one such as 'stages.3.blocks.1'")
        return self.grid_at(name, image_size)[0]
