"""Shared by the demo configs: a light Mask R-CNN, its data and schedule; for two CPU cores."""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "mmdet::_base_/default_runtime.py"]
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]

# Model. 112 pixels give grids of 28, 14 and 7 cells: whole windows of 7 in all stages but the last.
image_size = 112
channels = 64
num_classes = 10
embed_dims = 32
roi_align = dict(sampling_ratio=1)  # objects are small: a bin is about one cell
model = dict(
    data_preprocessor=dict(pad_size_divisor=1),
    backbone=dict(
        _delete_=True,
        type="SwinTransformer",
        embed_dims=embed_dims,
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 8, 16],
        window_size=7,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=[embed_dims * 2**i for i in range(4)], out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        # Square roots of the areas: 24, 48, 96; digits are higher than wide.
        anchor_generator=dict(scales=[6], ratios=[1.0, 2.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=roi_align, out_channels=channels, finest_scale=32),
        bbox_head=dict(
            in_channels=channels,
            fc_out_channels=256,
            num_classes=num_classes,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(roi_layer=roi_align, out_channels=channels, finest_scale=32),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=400, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=100), rcnn=dict(max_per_img=20)),
)

# Data
data_root = "data/demo/"
classes = tuple("0123456789")
load = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
]
meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
loader = dict(num_workers=1, persistent_workers=True)
train_dataloader = dict(
    batch_size=8,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="CocoDataset",
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file="annotations/train.json",
        data_prefix=dict(img="train/"),
        pipeline=[*load, dict(type="PackDetInputs")],
    ),
    **loader,
)
val_dataloader = dict(
    batch_size=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
        pipeline=[
            load[0],
            dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
            load[1],
            dict(type="PackDetInputs", meta_keys=meta_keys),
        ],
    ),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric",
    ann_file=data_root + "annotations/val.json",
    metric=["bbox", "segm"],
)
test_evaluator = val_evaluator

# Schedule
iterations = 700  # of 8 images: 2.8 times through the 2000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=iterations, eta_min=0),
]
default_hooks = dict(
    checkpoint=dict(
        type="SafeCheckpointHook", by_epoch=False, interval=iterations, max_keep_ckpts=1
    )
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
