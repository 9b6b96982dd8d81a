"""Necks for backbones with a single map, registered on import."""

from ltm_det.necks.simple_fpn import LN2d, SimpleFPN

__all__ = ["LN2d", "SimpleFPN"]
