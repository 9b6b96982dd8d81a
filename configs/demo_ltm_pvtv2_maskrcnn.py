"""Mask R-CNN with a narrow LTM-PVTv2 on the demo data."""

_base_ = "./demo_pvtv2_maskrcnn.py"
# In the second block of each stage, windows of 4 x 4 queries keep 3 x 3. Weights are random at
# first, and what resembles what says little then.
model = dict(backbone=dict(merger=dict(type="LTM", compression_ratio=0.5, affinity=0)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
