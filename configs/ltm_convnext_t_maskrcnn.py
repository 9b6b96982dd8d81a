"""Mask R-CNN with LTM-ConvNeXt-T on COCO: 3x schedule, multi-scale, AMP."""

_base_ = "./convnext_t_maskrcnn.py"
# From the second block of each stage on, of the third stage from its third on, MLPs run on 8 of the
# tokens of each window of 4 x 4. Each has a merger of its own, with a thin path.
model = dict(backbone=dict(merger=dict(type="LTM", compression_ratio=0.5, detail=0.1)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
