"""Backbones as files for ONNX Runtime or OpenVINO, such files as backbones, and detectors."""

from ltm_det.deploy.backbone import ExportedBackbone
from ltm_det.deploy.detector import WholeDetector, save_detector
from ltm_det.deploy.export import FORMATS, relative_errors, sample_size, save
from ltm_det.deploy.runtime import load

__all__ = [
    "FORMATS",
    "ExportedBackbone",
    "WholeDetector",
    "load",
    "relative_errors",
    "sample_size",
    "save",
    "save_detector",
]
