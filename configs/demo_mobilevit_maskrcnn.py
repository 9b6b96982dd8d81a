"""Mask R-CNN with a narrow dense MobileViT on the demo data."""

_base_ = "./_base_/demo.py"
channels = [16, 24, 32, 40, 48]
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMMobileViT",
        arch=dict(
            stem_channels=16,
            expand_ratio=2,
            channels=channels,
            strides=(1, 2, 2, 2, 2),
            residuals=(1, 1, 1, 1, 1),
            dims=(0, 0, 48, 64, 80),
            depths=(0, 0, 2, 2, 2),
        ),
        norm_eval=False,  # from scratch
    ),
    neck=dict(in_channels=channels[1:]),
)
