"""Mask R-CNN with the dense PVTv2-B2 on COCO: the twin of ltm_pvtv2_b2_maskrcnn.py."""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
weights = "https://huggingface.co/timm/pvt_v2_b2.in1k/resolve/main"
model = dict(
    backbone=dict(
        _delete_=True,
        type="LTMPVTv2",
        arch="b2",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint=f"{weights}/model.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
