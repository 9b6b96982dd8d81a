"""Weights for LTMMobileViT: timm's MobileViTs, whose names it keeps.

How they are loaded and accounted for: :mod:`ltm_det.backbones.common.weights`,
:mod:`ltm_det.backbones.common.accounting`. Names: timm/models/byobnet.py and mobilevit.py.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ltm_det.backbones.common.accounting import Family, Source, some, stages_of_blocks

_BLOCK = re.compile(r"^stages\.(\d+)\.(\d+)\.transformer\.(\d+)\.attn\.qkv\.weight$")
_SECOND = re.compile(r"^stages\.\d+\.\d+\.transformer\.\d+\.attn\.qkv_proj\.")
# Of a classifier: the convolution between the last stage and the head, and the head.
CLASSIFIER_ONLY = re.compile(r"^(?:final_conv|head)\.")


class MobileViTFamily(Family):
    """MobileViT, first version. A classifier's last convolution and head may be left over, where
    weights are given through init_cfg."""

    name = "MobileViT"
    supported = "timm's mobilevit_xxs, _xs and _s ('stages.2.1.transformer.0.attn.qkv...')"
    patch_embed = "stem.conv.weight"

    def read(self, state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Source | None:
        if any(map(_SECOND.match, state)):
            raise ValueError(
                f"MobileViT V2 checkpoint ({some(state)}): only the first version is supported."
            )
        return Source(dict(state), True) if any(map(_BLOCK.match, state)) else None

    def may_hold(self, key: str, own: Mapping[str, Tensor], lenient: bool) -> bool:
        return lenient and CLASSIFIER_ONLY.match(key) is not None

    def describe(self, state: Mapping[str, Tensor]) -> str:
        return stages_of_blocks(state, _BLOCK, axis=-1, nothing="no transformer")


MOBILEVIT = MobileViTFamily()
