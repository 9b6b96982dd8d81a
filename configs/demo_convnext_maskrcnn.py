"""Mask R-CNN with a narrow dense ConvNeXt on the demo data."""

_base_ = "./_base_/demo.py"
widths = [16, 32, 48, 64]
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMConvNeXt",
        arch=dict(dims=widths, depths=(2, 2, 2, 2)),
    ),
    neck=dict(in_channels=widths),
)
