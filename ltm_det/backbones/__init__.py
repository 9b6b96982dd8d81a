"""Backbones with token merging, registered with mmdet on import."""

from ltm_det.backbones.common.merge_points import MergePoint, MergeWatch
from ltm_det.backbones.convnext import LTMConvNeXt
from ltm_det.backbones.efficientvit import LTMEfficientViT
from ltm_det.backbones.mobilevit import LTMMobileViT
from ltm_det.backbones.pvt import LTMPVTv2
from ltm_det.backbones.swin import LTMSwin
from ltm_det.backbones.vit import HSTViT, LTMViT

__all__ = [
    "HSTViT",
    "LTMConvNeXt",
    "LTMEfficientViT",
    "LTMMobileViT",
    "LTMPVTv2",
    "LTMSwin",
    "LTMViT",
    "MergePoint",
    "MergeWatch",
]
