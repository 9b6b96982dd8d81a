"""SSDLite with the dense MobileViT-S on COCO: the twin of ltm_mobilevit_s_ssdlite.py."""

_base_ = "mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
weights = "https://huggingface.co/timm/mobilevit_s.cvnets_in1k/resolve/main"
channels = (128, 160, 512, 256, 256, 128)  # two maps of the backbone, four of the neck
model = dict(
    # The weights are of pixels from 0 to 1.
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
    backbone=dict(
        _delete_=True,
        type="LTMMobileViT",
        arch="s",
        out_indices=(3, 4),
        norm_eval=False,  # batches of 24
        init_cfg=dict(type="Pretrained", checkpoint=f"{weights}/model.safetensors"),
    ),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(type="PredictingSSDHead", in_channels=channels),
)
# AdamW, as transformers want it; warmed up and let down as the base does.
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
)
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
