"""Mask R-CNN with a narrow LTM-ConvNeXt on the demo data."""

_base_ = "./demo_convnext_maskrcnn.py"
# In the second block of each stage, the MLP runs on 8 of the tokens of each window of 4 x 4.
# Weights are random at first, and what resembles what says little then.
model = dict(backbone=dict(merger=dict(type="LTM", compression_ratio=0.5, affinity=0)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
