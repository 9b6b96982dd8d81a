"""The plain ViT with merged tokens, as ViTDet lays it out."""

from ltm_det.backbones.vit.backbone import LTMViT

__all__ = ["LTMViT"]
