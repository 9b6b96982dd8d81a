"""Mask R-CNN with the dense MobileViT-S on COCO: the twin of ltm_mobilevit_s_maskrcnn.py."""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
weights = "https://huggingface.co/timm/mobilevit_s.cvnets_in1k/resolve/main"
model = dict(
    # The weights are of pixels from 0 to 1.
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
    backbone=dict(
        _delete_=True,
        type="LTMMobileViT",
        arch="s",
        init_cfg=dict(type="Pretrained", checkpoint=f"{weights}/model.safetensors"),
    ),
    neck=dict(in_channels=[64, 96, 128, 160]),
)
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
