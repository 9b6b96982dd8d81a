"""Token mergers: torch only, so that ``import ltm_det.merging`` needs neither mmdet nor timm.

To add a method, write one file with a :class:`Merger` and name it in :data:`MERGERS`.
"""

from ltm_det.merging.base import NO_MERGING, Merger, Merging
from ltm_det.merging.ltm import LTM
from ltm_det.merging.pool import Pool
from ltm_det.merging.pooling import pooling_matrix
from ltm_det.merging.schedule import kept_side, kept_tokens, ratio_schedule

MERGERS: dict[str, type[Merger]] = {"LTM": LTM, "Pool": Pool}


def build_merger(type: str, **options) -> Merger:
    """Builds the merger named ``type`` (a key of :data:`MERGERS`).

    Raises:
        ValueError: If there is no merger of that name.
    """
    if type not in MERGERS:
        raise ValueError(f"unknown merger type {type!r}: choose one of {sorted(MERGERS)}")
    return MERGERS[type](**options)


__all__ = [
    "LTM",
    "MERGERS",
    "NO_MERGING",
    "Merger",
    "Merging",
    "Pool",
    "build_merger",
    "kept_side",
    "kept_tokens",
    "pooling_matrix",
    "ratio_schedule",
]
