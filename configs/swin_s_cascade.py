"""Cascade Mask R-CNN with the dense Swin-S on COCO: the twin of ltm_swin_s_cascade.py."""

_base_ = "./swin_t_cascade.py"
weights = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
model = dict(
    backbone=dict(
        depths=[2, 2, 18, 2],
        init_cfg=dict(checkpoint=f"{weights}/swin_small_patch4_window7_224.pth"),
    ),
)
