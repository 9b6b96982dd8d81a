"""Mask R-CNN with LTM-ViT-L on COCO: ViTDet's recipe."""

_base_ = "./vit_l_maskrcnn.py"
# From after the first global block on, windows of 14 x 14 keep 9 x 9 tokens, 0.41 of them.
merger = dict(type="LTM", merge_at=6, compression_ratio=0.4)
model = dict(backbone=dict(merger=merger))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
