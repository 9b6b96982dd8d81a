"""Mask R-CNN with the dense ViT-L/16 of DINOv3 on COCO: the twin of ltm_dinov3_l_maskrcnn.py."""

_base_ = "./dinov3_b_maskrcnn.py"
model = dict(
    backbone=dict(
        embed_dims=1024,
        depth=24,
        num_heads=16,
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint="weights/dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth"),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8))
