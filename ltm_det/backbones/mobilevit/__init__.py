"""MobileViT with merged tokens."""

from ltm_det.backbones.mobilevit.backbone import LTMMobileViT

__all__ = ["LTMMobileViT"]
