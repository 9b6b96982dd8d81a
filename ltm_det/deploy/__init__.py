"""Backbones as files that ONNX Runtime or OpenVINO runs, and such files as backbones."""

from ltm_det.deploy.backbone import ExportedBackbone
from ltm_det.deploy.export import FORMATS, relative_errors, sample_size, save
from ltm_det.deploy.runtime import load

__all__ = ["FORMATS", "ExportedBackbone", "load", "relative_errors", "sample_size", "save"]
