"""Mask R-CNN with the dense EfficientViT-B1 on COCO: ltm_efficientvit_b1_maskrcnn.py's twin."""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
weights = "https://huggingface.co/timm/efficientvit_b1.r224_in1k/resolve/main"
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMEfficientViT",
        arch="b1",
        init_cfg=dict(type="Pretrained", checkpoint=f"{weights}/model.safetensors"),
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
