"""Mask R-CNN with a small LTM-Swin on the demo data."""

_base_ = "./demo_swin_maskrcnn.py"
model = dict(backbone=dict(type="LTMSwin", merger=dict(type="LTM", compression_ratio=0.51)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
