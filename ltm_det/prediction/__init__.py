"""From pictures, folders and videos to what a detector finds on them, and to files of it."""

from ltm_det.prediction.detector import Detector

__all__ = ["Detector"]
