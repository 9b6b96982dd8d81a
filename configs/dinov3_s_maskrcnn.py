"""Mask R-CNN with the dense ViT-S/16 of DINOv3 on COCO: the twin of ltm_dinov3_s_maskrcnn.py."""

_base_ = "./dinov3_b_maskrcnn.py"
model = dict(
    backbone=dict(
        embed_dims=384,
        num_heads=6,
        init_cfg=dict(checkpoint="weights/dinov3_vits16_pretrain_lvd1689m-08c60483.pth"),
    ),
    neck=dict(in_channels=384),
)
