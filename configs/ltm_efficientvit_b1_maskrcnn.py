"""Mask R-CNN with LTM-EfficientViT-B1 on COCO: 3x schedule, multi-scale, AMP."""

_base_ = "./efficientvit_b1_maskrcnn.py"
# In both stages with attention, windows of 4 x 4 tokens keep 3 x 3.
model = dict(backbone=dict(merger=dict(type="LTM", compression_ratio=0.5)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
