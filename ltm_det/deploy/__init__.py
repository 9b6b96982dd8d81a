"""Backbones and detectors as files for ONNX Runtime or OpenVINO, and such files in their places."""

from ltm_det.deploy.backbone import ExportedBackbone
from ltm_det.deploy.detections import Detections
from ltm_det.deploy.detector import save_detector
from ltm_det.deploy.export import FORMATS, relative_errors, sample_size, save
from ltm_det.deploy.exported_detector import ExportedDetector
from ltm_det.deploy.predictor import Predictor, load
from ltm_det.deploy.whole import WholeDetector
from ltm_det.deploy.written import written

__all__ = [
    "FORMATS",
    "Detections",
    "ExportedBackbone",
    "ExportedDetector",
    "Predictor",
    "WholeDetector",
    "load",
    "relative_errors",
    "sample_size",
    "save",
    "save_detector",
    "written",
]
