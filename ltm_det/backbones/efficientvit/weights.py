"""Weights for LTMEfficientViT: timm's EfficientViTs of the B series, whose names it keeps.

How they are loaded and accounted for: :mod:`ltm_det.backbones.common.weights`,
:mod:`ltm_det.backbones.common.accounting`. Names: timm/models/efficientvit_mit.py.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ltm_det.backbones.common.accounting import Family, Source, some, stages_of_blocks

_BLOCK = re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\.context_module\.main\.qkv\.conv\.weight$")
_LARGE = re.compile(r"^stages\.\d+\.blocks\.\d+\.main\.spatial_conv\.")


class EfficientViTFamily(Family):
    """EfficientViT, B series. A classifier's head may be left over, where weights are given through
    init_cfg."""

    name = "EfficientViT"
    supported = (
        "timm's efficientvit_b0 to _b3 ('stages.2.blocks.1.context_module.main.qkv.conv...')"
    )
    patch_embed = "stem.in_conv.conv.weight"

    def read(self, state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Source | None:
        if any(map(_LARGE.match, state)):
            raise ValueError(
                f"EfficientViT checkpoint of the L series ({some(state)}): only B0 to B3 are "
                "supported."
            )
        return Source(dict(state), True) if any(map(_BLOCK.match, state)) else None

    def may_hold(self, key: str, own: Mapping[str, Tensor], lenient: bool) -> bool:
        return lenient and key.startswith("head.")

    def describe(self, state: Mapping[str, Tensor]) -> str:
        return stages_of_blocks(state, _BLOCK, axis=1, nothing="no attention")


EFFICIENTVIT = EfficientViTFamily()
