"""Mask R-CNN with a side network beside a small frozen ViT on the demo data; give the ViT's weights
by model.backbone.vit.init_cfg, such as those of demo_vit_maskrcnn.py."""

_base_ = "./_base_/demo.py"
channels = [32, 64, 128, 256]
model = dict(
    backbone=dict(
        _delete_=True,
        type="HSTViT",
        vit=dict(
            embed_dims=128,
            depth=8,
            num_heads=4,
            patch_size=8,  # a grid of 14 x 14 tokens, 2 x 2 windows
            window_size=7,
            pretrain_img_size=112,
        ),
        learned_tokens=4,
        embed_dims=channels[0],
    ),
    neck=dict(in_channels=channels),
)
