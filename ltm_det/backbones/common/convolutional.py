"""What backbones of convolutional stages have in common: what is frozen, and where maps lie."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltm_det.basics.errors import InputError


class ConvolutionalBackbone(nn.Module):
    """Mixin, to be named before mmengine's BaseModule: a stem, and stages that halve the map.

    Attributes:
        stem: Modules from images to the first stage's input.
        stages: In their order.
        strides: Pixels between neighbours of each stage's map.
        window: M, side of the windows that tokens are merged in.
        frozen_stages: -1 freezes nothing, 0 the stem, n > 0 also the first n stages.
        norm_eval: Whether batch norms keep to their running statistics in training.
    """

    stem: nn.Module
    stages: nn.ModuleList
    strides: list[int]
    window: int
    frozen_stages: int
    norm_eval: bool

    def train(self, mode: bool = True) -> "ConvolutionalBackbone":
        super().train(mode)
        self.freeze()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def freeze(self) -> None:
        """Takes the stem and the first stages out of training."""
        if self.frozen_stages < 0:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def shift_at(self, name: str) -> int:
        """By how many tokens the map is rolled back at a merge point: windows never shift."""
        return 0

    def map_size(self, stage: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a stage's map for images of h x w pixels: halves are rounded up."""
        height, width = (-(-side // self.strides[stage]) for side in image_size)
        return height, width

    def out_maps(self, maps: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
        """Those of the stages that are given out, (B, C, H, W), in memory row by row."""
        return [maps[i].contiguous() for i in indices]


def check_outs(owner: str, args: Mapping[str, Any], stages: int) -> None:
    """That ``out_indices`` and ``frozen_stages`` name stages, and ``with_cp`` harms no statistics.

    Raises:
        InputError: They do not.
    """
    outs, frozen = args["out_indices"], args["frozen_stages"]
    if max(outs) >= stages or list(outs) != sorted(set(outs)):
        raise InputError(
            f"{owner}: out_indices={outs!r} must name stages of 0 to {stages - 1}, in ascending "
            "order, each once"
        )
    if frozen > stages:
        raise InputError(f"{owner}: frozen_stages={frozen}: give -1 to {stages}, the stages")
