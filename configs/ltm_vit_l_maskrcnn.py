"""Mask R-CNN with LTM-ViT-L on COCO: ViTDet's recipe."""

_base_ = "./vit_l_maskrcnn.py"
# From the first global block on, windows of 14 x 14 keep 9 x 9 tokens.
merger = dict(type="LTM", merge_at=5, compression_ratio=0.4)
model = dict(backbone=dict(merger=merger))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
