"""Cascade Mask R-CNN with LTM-ViT-B on COCO: ViTDet's recipe."""

_base_ = "./vit_b_cascade.py"
# From the first global block on, windows of 14 x 14 keep 10 x 10 tokens.
merger = dict(type="LTM", merge_at=2, compression_ratio=0.51)
model = dict(backbone=dict(merger=merger))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
