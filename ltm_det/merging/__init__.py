"""Token mergers: torch only, so that ``import ltm_det.merging`` needs neither mmdet nor timm.

To add a method, write one file with a :class:`Merger` and name it in :data:`MERGERS`.
"""

from collections.abc import Mapping
from typing import Any

from ltm_det.basics.arguments import choice
from ltm_det.basics.errors import InputError
from ltm_det.merging.base import NO_CUES, NO_MERGING, SHUT, Cues, Merger, Merging
from ltm_det.merging.bottleneck import BottleneckStep
from ltm_det.merging.dtem import DTEM
from ltm_det.merging.ltm import LTM
from ltm_det.merging.ltmp import LTMP
from ltm_det.merging.pitome import PiToMe
from ltm_det.merging.pool import Pool
from ltm_det.merging.pooling import pooling_matrix
from ltm_det.merging.random import Random
from ltm_det.merging.received import received_attention
from ltm_det.merging.schedule import check_ratio, kept_side, kept_tokens, ratio_schedule
from ltm_det.merging.tofu import ToFu
from ltm_det.merging.tome import ToMe

MERGERS: dict[str, type[Merger]] = {
    "DTEM": DTEM,
    "LTM": LTM,
    "LTMP": LTMP,
    "PiToMe": PiToMe,
    "Pool": Pool,
    "Random": Random,
    "ToFu": ToFu,
    "ToMe": ToMe,
}


def build_merger(type: str, **options: Any) -> Merger:
    """Builds the merger named ``type`` (a key of :data:`MERGERS`).

    Raises:
        InputError: If there is no merger of that name.
    """
    choice(MERGERS)("merger type", type)
    return MERGERS[type](**options)


def merger_options(merger: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a backbone's ``merger`` argument, which has to be a dict with type and ratio.

    Raises:
        InputError: Names what is missing.
    """
    if not isinstance(merger, Mapping):
        raise InputError(
            f"merger must be None or a dict with type and compression_ratio: {merger!r}"
        )
    missing = {"type", "compression_ratio"} - merger.keys()
    if missing:
        raise InputError(f"merger={dict(merger)} lacks {sorted(missing)}")
    return dict(merger)


__all__ = [
    "DTEM",
    "LTM",
    "LTMP",
    "MERGERS",
    "NO_CUES",
    "NO_MERGING",
    "SHUT",
    "BottleneckStep",
    "Cues",
    "Merger",
    "Merging",
    "PiToMe",
    "Pool",
    "Random",
    "ToFu",
    "ToMe",
    "build_merger",
    "check_ratio",
    "kept_side",
    "kept_tokens",
    "merger_options",
    "pooling_matrix",
    "ratio_schedule",
    "received_attention",
]
