"""The plain ViT with merged tokens, as ViTDet lays it out."""

from ltm_det.backbones.vit.backbone import LTMViT
from ltm_det.backbones.vit.side import HSTViT

__all__ = ["HSTViT", "LTMViT"]
