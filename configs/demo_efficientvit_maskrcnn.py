"""Mask R-CNN with a narrow dense EfficientViT on the demo data."""

_base_ = "./_base_/demo.py"
widths = [16, 16, 32, 48, 64]
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMEfficientViT",
        arch=dict(widths=widths, depths=(1, 1, 1, 2, 2), head_dim=16, expand_ratio=4),
        norm_eval=False,  # from scratch
    ),
    neck=dict(in_channels=widths[1:]),
)
