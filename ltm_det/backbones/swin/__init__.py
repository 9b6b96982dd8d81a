"""Swin with merged tokens."""

from ltm_det.backbones.swin.backbone import LTMSwin

__all__ = ["LTMSwin"]
