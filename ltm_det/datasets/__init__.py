"""Data that needs no download. Imports neither torch nor mmdet."""

from ltm_det.datasets.demo import DemoDataError, make_demo_data

__all__ = ["DemoDataError", "make_demo_data"]
