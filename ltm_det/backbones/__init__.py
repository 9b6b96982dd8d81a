"""Backbones with token merging, registered with mmdet on import."""

from ltm_det.backbones.swin import LTMSwin

__all__ = ["LTMSwin"]
