"""ConvNeXt with merged tokens."""

from ltm_det.backbones.convnext.backbone import LTMConvNeXt

__all__ = ["LTMConvNeXt"]
