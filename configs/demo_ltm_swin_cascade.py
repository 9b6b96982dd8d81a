"""Cascade Mask R-CNN with a small LTM-Swin on the demo data."""

_base_ = "./demo_swin_cascade.py"
# Stage 4 has 4 x 4 tokens, fewer than the 5 x 5 that a window would be merged into. Weights are
# random at first, and what resembles what says little then.
merger = dict(type="LTM", compression_ratio=[0.51, 0.51, 0.51, 1.0], affinity=0)
model = dict(backbone=dict(type="LTMSwin", merger=merger))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
