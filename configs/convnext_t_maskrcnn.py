"""Mask R-CNN with the dense ConvNeXt-T on COCO: the twin of ltm_convnext_t_maskrcnn.py."""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
weights = "https://huggingface.co/timm/convnext_tiny.fb_in1k/resolve/main"
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMConvNeXt",
        arch="t",
        drop_path_rate=0.4,
        init_cfg=dict(type="Pretrained", checkpoint=f"{weights}/model.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
