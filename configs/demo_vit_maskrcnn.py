"""Mask R-CNN with a small dense ViT on the demo data: the twin of demo_ltm_vit_maskrcnn.py."""

_base_ = "./_base_/demo.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMViT",
        embed_dims=128,
        depth=8,
        num_heads=4,
        patch_size=8,  # a grid of 14 x 14 tokens, 2 x 2 windows
        window_size=7,
        pretrain_img_size=112,
    ),
    neck=dict(
        _delete_=True,
        type="SimpleFPN",
        in_channels=128,
        out_channels=64,
        scales=(2.0, 1.0, 0.5, 0.25),  # of stride 8: strides 4 to 32, as the anchors have
        num_outs=4,
    ),
)
