"""Weights for LTMPVTv2: timm's, whose names it keeps, and those of PVTv2's own repository.

How they are loaded and accounted for: :mod:`ltm_det.backbones.common.weights`,
:mod:`ltm_det.backbones.common.accounting`. Names: timm/models/pvt_v2.py, and
classification/pvt_v2.py of whai362/PVT on GitHub.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ltm_det.backbones.common.accounting import Family, Source, some, stages_of_blocks

_BLOCK = re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\.attn\.kv\.weight$")
_REDUCTION = re.compile(r"^stages\.\d+\.blocks\.\d+\.attn\.sr\.weight$")
# The repository counts stages from 1 on, and the first one's patches are the backbone's in timm.
_STAGE = re.compile(r"^(patch_embed|block|norm)([1-9])\.")
_PLACES = {"patch_embed": "downsample.", "block": "blocks.", "norm": "norm."}


class PVTv2Family(Family):
    """PVTv2, B0 to B5. A classifier's head may be left over, where weights are given through
    init_cfg."""

    name = "PVTv2"
    supported = (
        "timm's pvt_v2_b0 to _b5 ('stages.0.blocks.0.attn.kv...') and those of PVTv2's repository "
        "('block1.0.attn.kv...')"
    )
    patch_embed = "patch_embed.proj.weight"

    def read(self, state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Source | None:
        state = {_renamed(key): value for key, value in state.items()}
        if not any(map(_BLOCK.match, state)):
            return None
        pooled = [k for k, v in state.items() if _REDUCTION.match(k) and v.shape[-1] == 1]
        if pooled:
            raise ValueError(
                f"PVTv2 checkpoint of a model with linear attention, '-Li' ({some(pooled)}): only "
                "those that reduce keys by a convolution are supported, B0 to B5."
            )
        return Source(state, True)

    def may_hold(self, key: str, own: Mapping[str, Tensor], lenient: bool) -> bool:
        return lenient and key.startswith("head.")

    def describe(self, state: Mapping[str, Tensor]) -> str:
        return stages_of_blocks(state, _BLOCK, axis=-1, nothing="no blocks")


PVTV2 = PVTv2Family()


def _renamed(key: str) -> str:
    """A name of the repository's as timm has it; others stay."""
    if match := _STAGE.match(key):
        part, stage = match[1], int(match[2]) - 1
        first = part == "patch_embed" and stage == 0
        place = "patch_embed." if first else f"stages.{stage}.{_PLACES[part]}"
        key = place + key[match.end() :]
    return key.replace(".dwconv.dwconv.", ".dwconv.")
