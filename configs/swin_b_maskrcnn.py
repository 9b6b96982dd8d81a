"""Mask R-CNN with the dense Swin-B on COCO (mmdet has none): twin of ltm_swin_b_maskrcnn.py."""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
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
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
