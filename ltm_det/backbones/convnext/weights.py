"""Weights for LTMConvNeXt: timm's, whose names it keeps, and those of ConvNeXt's own repository.

How they are loaded and accounted for: :mod:`ltm_det.backbones.common.weights`,
:mod:`ltm_det.backbones.common.accounting`. Names: timm/models/convnext.py, and models/convnext.py
of facebookresearch/ConvNeXt on GitHub.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ltm_det.backbones.common.accounting import Family, Source, some, stages_of_blocks

_BLOCK = re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.weight$")
_SECOND = re.compile(r"^stages\.\d+\.blocks\.\d+\.(?:mlp\.)?grn\.")
# Of a classifier: the norm between the last stage and the head, and the head.
CLASSIFIER_ONLY = re.compile(r"^(?:norm|norm_pre|head)\.")
_RENAMES = (  # the repository's to timm's
    (re.compile(r"^downsample_layers\.0\."), "stem."),
    (re.compile(r"^downsample_layers\.(\d+)\."), r"stages.\1.downsample."),
    (re.compile(r"^stages\.(\d+)\.(\d+)\."), r"stages.\1.blocks.\2."),
    (re.compile(r"\.dwconv\."), ".conv_dw."),
    (re.compile(r"\.pwconv([12])\."), r".mlp.fc\1."),
)


class ConvNeXtFamily(Family):
    """ConvNeXt, first version. A classifier's last norm and head may be left over, where weights
    are given through init_cfg."""

    name = "ConvNeXt"
    supported = (
        "timm's convnext_tiny, _small and _base ('stages.0.blocks.0.conv_dw...') and those of "
        "ConvNeXt's repository ('stages.0.0.dwconv...')"
    )
    patch_embed = "stem.0.weight"

    def read(self, state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Source | None:
        state = {_renamed(key): value for key, value in state.items()}
        if any(map(_SECOND.match, state)):
            raise ValueError(
                f"ConvNeXt V2 checkpoint ({some(state)}): only the first version is supported."
            )
        return Source(state, True) if any(map(_BLOCK.match, state)) else None

    def may_hold(self, key: str, own: Mapping[str, Tensor], lenient: bool) -> bool:
        return lenient and CLASSIFIER_ONLY.match(key) is not None

    def describe(self, state: Mapping[str, Tensor]) -> str:
        return stages_of_blocks(state, _BLOCK, axis=0, nothing="no blocks")


CONVNEXT = ConvNeXtFamily()


def _renamed(key: str) -> str:
    """A name of the repository's as timm has it; others stay."""
    for pattern, name in _RENAMES:
        key = pattern.sub(name, key)
    return key
