"""Mask R-CNN with LTM-Swin-S on COCO: 3x schedule, multi-scale, AMP."""

_base_ = "mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
model = dict(backbone=dict(type="LTMSwin", merger=dict(type="LTM", compression_ratio=0.51)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
