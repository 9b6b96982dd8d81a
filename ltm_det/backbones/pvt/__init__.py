"""PVTv2 with merged tokens."""

from ltm_det.backbones.pvt.backbone import LTMPVTv2

__all__ = ["LTMPVTv2"]
