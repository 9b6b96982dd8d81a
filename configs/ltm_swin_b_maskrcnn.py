"""Mask R-CNN with LTM-Swin-B on COCO: 3x schedule, multi-scale, AMP."""

_base_ = "./swin_b_maskrcnn.py"
custom_imports = dict(imports=["ltm_det"])
model = dict(backbone=dict(type="LTMSwin", merger=dict(type="LTM", compression_ratio=0.51)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
