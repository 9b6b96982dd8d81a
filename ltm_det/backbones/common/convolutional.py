"""What backbones of convolutional stages have in common: what is frozen, and where maps lie."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltm_det import cpu
from ltm_det.backbones.common.arguments import window
from ltm_det.backbones.common.frozen import FrozenStages
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.basics.arguments import flag, many, number, whole
from ltm_det.basics.errors import InputError
from ltm_det.cpu.door import Executor

RULES = dict(
    in_channels=whole(1),
    out_indices=many(whole()),
    window_size=window,
    drop_path_rate=number(0, below=1),
    with_cp=flag,
    frozen_stages=whole(-1),
    norm_eval=flag,
)


class ConvolutionalBackbone(FrozenStages):
    """Mixin, to be named before mmengine's BaseModule: a stem, and stages that halve the map.

    Attributes:
        stem: Modules from images to the first stage's input.
        stages: In their order.
        strides: Pixels between neighbours of each stage's map.
        window: M, side of the windows that tokens are merged in.
        out_indices: Stages whose maps are given out.
        frozen_stages: -1 freezes nothing, 0 the stem, n > 0 also the first n stages.
        norm_eval: Whether batch norms keep to their running statistics in training.
        executors: See :func:`ltm_det.cpu.choose`.
    """

    stem: nn.Module
    stages: nn.ModuleList
    strides: list[int]
    window: int
    out_indices: tuple[int, ...]
    frozen_stages: int
    norm_eval: bool
    executors: Mapping[type, Executor]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, h, w) of any size to the maps (B, C_i, H_i, W_i) of ``out_indices``."""
        call = cpu.choose(self.executors, x)
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x, call)
            maps.append(x)
        return self.out_maps(maps)

    def train(self, mode: bool = True) -> "ConvolutionalBackbone":
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def frozen(self) -> list[nn.Module]:
        return [self.stem, *self.stages[: self.frozen_stages]]

    def shift_at(self, name: str) -> int:
        """By how many tokens the map is rolled back at a merge point: windows never shift."""
        return 0

    def map_size(self, stage: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a stage's map for images of h x w pixels: halves are rounded up."""
        height, width = (-(-side // self.strides[stage]) for side in image_size)
        return height, width

    def grid_at(self, name: str, image_size: tuple[int, int]) -> tuple[WindowGrid, float]:
        """The map at a merge point for images of h x w pixels, and the pixels of a token."""
        stage = int(name.split(".")[1])
        return WindowGrid(*self.map_size(stage, image_size), self.window), self.strides[stage]

    def out_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Those of the stages that are given out, (B, C, H, W), in memory row by row."""
        return [maps[i].contiguous() for i in self.out_indices]


def check_outs(owner: str, outs: Sequence[int], frozen: int, stages: int) -> None:
    """That ``out_indices`` and ``frozen_stages`` name stages.

    Raises:
        InputError: They do not.
    """
    if max(outs) >= stages or list(outs) != sorted(set(outs)):
        raise InputError(
            f"{owner}: out_indices={outs!r} must name stages of 0 to {stages - 1}, in ascending "
            "order, each once"
        )
    if frozen > stages:
        raise InputError(f"{owner}: frozen_stages={frozen}: give -1 to {stages}, the stages")


def places(depths: Sequence[int], drop_path_rate: float) -> list[tuple[list[float], list[float]]]:
    """For each stage that merges, of each of its blocks: the share of all blocks that come before
    it, and its stochastic depth, which grows linearly to ``drop_path_rate``.

    Args:
        depths: Blocks of these stages.
    """
    total = sum(depths)
    before = [block / total for block in range(total)]
    drops = torch.linspace(0, drop_path_rate, total, device="cpu").tolist()
    ends = [sum(depths[: i + 1]) for i in range(len(depths))]
    return [
        (before[end - depth : end], drops[end - depth : end])
        for end, depth in zip(ends, depths, strict=True)
    ]
