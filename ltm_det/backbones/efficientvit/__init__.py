"""EfficientViT with merged tokens."""

from ltm_det.backbones.efficientvit.backbone import LTMEfficientViT

__all__ = ["LTMEfficientViT"]
