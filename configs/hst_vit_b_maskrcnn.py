"""Mask R-CNN with a side network beside a frozen ViT-B on COCO (HST, arXiv 2310.05393)."""

_base_ = "./_base_/vitdet.py"
channels = [48, 96, 192, 384]
model = dict(
    backbone=dict(
        _delete_=True,
        type="HSTViT",
        vit=dict(img_size=1024, init_cfg={{_base_.model.backbone.init_cfg}}),
        embed_dims=channels[0],
    ),
    neck=dict(_delete_=True, type="FPN", in_channels=channels, out_channels=256, num_outs=5),
)
# What is frozen needs no rate of its own.
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0),
)
