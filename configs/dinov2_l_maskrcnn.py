"""Mask R-CNN with the dense ViT-L/14 of DINOv2 on COCO: the twin of ltm_dinov2_l_maskrcnn.py."""

_base_ = "./dinov2_b_maskrcnn.py"
model = dict(
    backbone=dict(
        embed_dims=1024,
        depth=24,
        num_heads=16,
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"
        ),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8))
