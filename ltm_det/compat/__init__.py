"""Fixes that let mmdet 3.3 run, and count, on current torch, as functions without arguments.

``apply`` is called once by ``import ltm_det`` where mmdet is installed. It does no harm twice.
"""

from ltm_det.compat.checkpoint import allow_mmengine_checkpoints, load_safely
from ltm_det.compat.class_names import match_classes_by_name
from ltm_det.compat.complexity import count_fused_attention
from ltm_det.compat.configs import find_our_configs
from ltm_det.compat.newer_mmcv import accept_newer_mmcv
from ltm_det.compat.ops import provide_mmcv_ops


def apply() -> None:
    """Put all in place: mmdet beside a newer mmcv, compiled ops that mmdet needs, safe loading,
    counts of attention, our configs by name, and classes by name.
    """
    accept_newer_mmcv()
    provide_mmcv_ops()
    allow_mmengine_checkpoints()
    load_safely()
    count_fused_attention()
    find_our_configs()
    match_classes_by_name()


__all__ = [
    "accept_newer_mmcv",
    "allow_mmengine_checkpoints",
    "apply",
    "count_fused_attention",
    "find_our_configs",
    "load_safely",
    "match_classes_by_name",
    "provide_mmcv_ops",
]
