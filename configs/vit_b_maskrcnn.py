"""Mask R-CNN with the dense ViT-B on COCO, as ViTDet: the twin of ltm_vit_b_maskrcnn.py."""

_base_ = "./_base_/vitdet.py"
