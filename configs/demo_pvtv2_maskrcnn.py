"""Mask R-CNN with a narrow dense PVTv2 on the demo data."""

_base_ = "./_base_/demo.py"
widths = [16, 32, 48, 64]
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMPVTv2",
        arch=dict(
            embed_dims=widths,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 3, 4),
            sr_ratios=(8, 4, 2, 1),
            mlp_ratios=(8, 8, 4, 4),
        ),
    ),
    neck=dict(in_channels=widths),
)
