"""Mask R-CNN with a small LTM-ViT on the demo data."""

_base_ = "./demo_vit_maskrcnn.py"
model = dict(backbone=dict(merger=dict(type="LTM", compression_ratio=0.51)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
