"""Mask R-CNN with a small LTM-ViT on the demo data."""

_base_ = "./demo_vit_maskrcnn.py"
# From the middle of its eight blocks on, windows of 7 x 7 keep 5 x 5 tokens. Weights are random at
# first, and what resembles what says little then.
merger = dict(type="LTM", merge_at=4, compression_ratio=0.51, affinity=0)
model = dict(backbone=dict(merger=merger))
# U reads C channels at once, so it learns at a tenth of the rate, unlike S_0, V and W.
full = dict(decay_mult=0.0)
merger_keys = dict(merger=dict(lr_mult=0.1, **full), initial_logits=full, detail_=full)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=merger_keys))
