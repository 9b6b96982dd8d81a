"""Mask R-CNN with the dense ViT-L on COCO: the twin of ltm_vit_l_maskrcnn.py."""

_base_ = "./vit_b_maskrcnn.py"
model = dict(
    backbone=dict(
        embed_dims=1024,
        depth=24,
        num_heads=16,
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large.pth"
        ),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8))
