"""Mask R-CNN with LTM-PVTv2-B2 on COCO: 3x schedule, multi-scale, AMP."""

_base_ = "./pvtv2_b2_maskrcnn.py"
# From the second block of each stage on, of the third stage from its third on, windows of 4 x 4
# queries keep 3 x 3.
model = dict(backbone=dict(merger=dict(type="LTM", compression_ratio=0.5)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
