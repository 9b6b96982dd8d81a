"""From pictures, folders and videos to what a detector finds on them, and to files of it."""

from ltm_det.prediction.detector import Detector
from ltm_det.prediction.tiles import Tiles

__all__ = ["Detector", "Tiles"]
