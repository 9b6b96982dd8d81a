"""Mask R-CNN with LTM in DINOv2's ViT-L on COCO: ViTDet's recipe."""

_base_ = "./dinov2_l_maskrcnn.py"
# From the first global block on, windows of 15 x 15 keep 11 x 11 tokens.
merger = dict(type="LTM", merge_at=5, compression_ratio=0.51)
model = dict(backbone=dict(merger=merger))
# U reads C channels at once, so it learns at a tenth of the rate, unlike S_0, V and W.
full = dict(decay_mult=0.0)
merger_keys = dict(merger=dict(lr_mult=0.1, **full), initial_logits=full, detail_=full)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=merger_keys))
