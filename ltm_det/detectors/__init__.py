"""The rest of the detector: necks, heads and masks of mmdet's two-stage detectors, faster."""

from ltm_det.detectors.convolutions import FastConv2d, FastConvModule, use_fast_convolutions
from ltm_det.detectors.detectors import (
    FAST,
    FastCascadeRCNN,
    FastFasterRCNN,
    FastMaskRCNN,
    check_lean,
)
from ltm_det.detectors.heads import FastCascadeRoIHead, FastStandardRoIHead
from ltm_det.detectors.lean import LEAN, LeanRPNHead, Recipe
from ltm_det.detectors.masks import FastFCNMaskHead
from ltm_det.detectors.regions import FastRoIExtractor
from ltm_det.detectors.rpn import FastRPNHead
from ltm_det.detectors.ssd import PredictingSSDHead

__all__ = [
    "FAST",
    "LEAN",
    "FastCascadeRCNN",
    "FastCascadeRoIHead",
    "FastConv2d",
    "FastConvModule",
    "FastFCNMaskHead",
    "FastFasterRCNN",
    "FastMaskRCNN",
    "FastRPNHead",
    "FastRoIExtractor",
    "FastStandardRoIHead",
    "LeanRPNHead",
    "PredictingSSDHead",
    "Recipe",
    "check_lean",
    "use_fast_convolutions",
]
