"""Mask R-CNN with LTM-ConvNeXt-T on COCO: 3x schedule, multi-scale, AMP."""

_base_ = "./convnext_t_maskrcnn.py"
# In the third stage from its third block on, in the fourth from its second, MLPs run on 6 of the
# tokens of each window of 4 x 4. Each has a merger of its own, with a thin path.
merger = dict(type="LTM", compression_ratio=[1, 1, 0.375, 0.375], detail=0.1)
model = dict(backbone=dict(merger=merger))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(merger=dict(decay_mult=0.0))))
