"""timm's small backbones as they are, to measure ours against.

They are registered under the arguments of ours, with parameters of the same names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from timm.models.byobnet import ByobNet
from timm.models.convnext import ConvNeXt
from timm.models.efficientvit_mit import EfficientVit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

from ltm_det.backbones.convnext import arguments as convnext
from ltm_det.backbones.efficientvit import arguments as efficientvit
from ltm_det.backbones.mobilevit import arguments as mobilevit
from ltm_det.backbones.pvt import arguments as pvt


class TimmStages(BaseModule):
    """timm's stem and stages. What changes no feature without training is taken and left alone.

    Args:
        network: timm's.
        out_indices: Stages whose maps are given out.
        stem: What timm calls what comes before the stages.
    """

    def __init__(self, network: nn.Module, out_indices: Sequence[int], stem: str = "stem") -> None:
        super().__init__()
        self.first = stem
        self.add_module(stem, network.get_submodule(stem))
        self.stages, self.out_indices = network.stages, out_indices

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the maps (B, C_i, H_i, W_i) of ``out_indices``."""
        x, maps = self.get_submodule(self.first)(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[i].contiguous() for i in self.out_indices]


@MODELS.register_module()
class TimmMobileViT(TimmStages):
    def __init__(
        self,
        arch: str | Mapping[str, Any] = "s",
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        **silent: Any,
    ) -> None:
        cfg = mobilevit.timm_config(mobilevit.sizes_of(arch))
        super().__init__(ByobNet(cfg, num_classes=0, in_chans=in_channels), out_indices)


@MODELS.register_module()
class TimmEfficientViT(TimmStages):
    def __init__(
        self,
        arch: str | Mapping[str, Any] = "b1",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        **silent: Any,
    ) -> None:
        sizes = efficientvit.sizes_of(arch)
        network = EfficientVit(in_channels, num_classes=0, head_widths=(1, 1), **sizes)
        super().__init__(network, out_indices)


@MODELS.register_module()
class TimmPVTv2(TimmStages):
    def __init__(
        self,
        arch: str | Mapping[str, Any] = "b2",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        **silent: Any,
    ) -> None:
        network = PyramidVisionTransformerV2(in_channels, num_classes=0, **pvt.sizes_of(arch))
        super().__init__(network, out_indices, stem="patch_embed")


@MODELS.register_module()
class TimmConvNeXt(TimmStages):
    def __init__(
        self,
        arch: str | Mapping[str, Any] = "t",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        **silent: Any,
    ) -> None:
        sizes = convnext.sizes_of(arch)
        network = ConvNeXt(in_channels, num_classes=0, **convnext.timm_sizes(sizes))
        network.stages = network.stages[: len(sizes["dims"])]
        super().__init__(network, out_indices)
