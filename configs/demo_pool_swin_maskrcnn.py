"""Mask R-CNN with a small Swin on the demo data, pooled where LTM's demo merges."""

_base_ = "./demo_swin_maskrcnn.py"
merger = dict(type="Pool", compression_ratio=[0.51, 0.51, 0.51, 1.0])
model = dict(backbone=dict(type="LTMSwin", merger=merger))
