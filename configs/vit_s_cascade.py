"""Cascade Mask R-CNN with the dense ViT-S on COCO: the twin of ltm_vit_s_cascade.py."""

_base_ = "./vit_b_cascade.py"
model = dict(
    backbone=dict(
        embed_dims=384,
        num_heads=6,
        # Of this size there are no MAE weights.
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth"
        ),
    ),
    neck=dict(in_channels=384),
)
