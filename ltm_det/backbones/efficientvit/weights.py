"""Weights for LTMEfficientViT: timm's EfficientViTs of the B series, whose names it keeps.

How they are loaded and accounted for: :mod:`ltm_det.backbones.common.weights`,
:mod:`ltm_det.backbones.common.accounting`. Names: timm/models/efficientvit_mit.py.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ltm_det.backbones.common.accounting import Family, Source, some

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
        widths: dict[str, list[int]] = {}
        for key, value in state.items():
            if match := _BLOCK.match(key):
                widths.setdefault(match[1], []).append(value.shape[1])
        stages = [f"stage {i}: {len(w)} blocks of {w[0]} channels" for i, w in widths.items()]
        mergers = {key.rpartition(".")[0] for key in state if ".merger" in key}
        return (
            f"{'; '.join(stages) or 'no attention'}; mask modules: "
            f"{some(sorted(mergers)) if mergers else 'none'}"
        )


EFFICIENTVIT = EfficientViTFamily()
