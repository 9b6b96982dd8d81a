"""Mask R-CNN with LTM-PVTv2-B0 on COCO: 3x schedule, multi-scale, AMP."""

_base_ = "./pvtv2_b0_maskrcnn.py"
# In the second block of each stage, windows of 4 x 4 queries keep 3 x 3, in the first stage 2 x 2.
model = dict(backbone=dict(merger=dict(type="LTM", compression_ratio=[0.25, 0.5, 0.5, 0.5])))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
