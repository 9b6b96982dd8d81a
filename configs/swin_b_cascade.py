"""Cascade Mask R-CNN with the dense Swin-B on COCO: the twin of ltm_swin_b_cascade.py."""

_base_ = "./swin_t_cascade.py"
weights = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
model = dict(
    backbone=dict(
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint=f"{weights}/swin_base_patch4_window7_224.pth"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
