"""Mask R-CNN with the dense ViT-S/14 of DINOv2 on COCO: the twin of ltm_dinov2_s_maskrcnn.py."""

_base_ = "./dinov2_b_maskrcnn.py"
model = dict(
    backbone=dict(
        embed_dims=384,
        num_heads=6,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"
        ),
    ),
    neck=dict(in_channels=384),
)
