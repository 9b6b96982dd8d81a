"""Shared by the ViT configs: ViTDet's recipe (arXiv 2203.16527), with Mask R-CNN and ViT-B."""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "mmdet::common/lsj-100e_coco-instance.py"]
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]

# Model
image_size = 1024
embed_dims = 768
norm_cfg = dict(type="LN2d", eps=1e-6)  # mmcv would give it 1e-5
model = dict(
    # Images, at most 1024 x 1024, are padded to just that, in training and in testing: relative
    # positions of global blocks are learned for 64 x 64 patches.
    data_preprocessor=dict(pad_size_divisor=image_size),
    backbone=dict(
        _delete_=True,
        type="LTMViT",
        embed_dims=embed_dims,
        depth=12,
        num_heads=12,
        img_size=image_size,
        window_size=14,
        use_rel_pos=True,
        drop_path_rate=0.1,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth",
        ),
    ),
    neck=dict(
        _delete_=True,
        type="SimpleFPN",
        in_channels=embed_dims,
        out_channels=256,
        num_outs=5,
        norm_cfg=norm_cfg,
    ),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

# Data: large-scale jitter from the base, which repeats the data set and counts epochs.
train_dataloader = dict(
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(_delete_=True, **_base_.train_dataloader.dataset.dataset),
)
resize = dict(type="Resize", scale=(image_size, image_size), keep_ratio=True)
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[2:]]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Schedule: 100 epochs of 118000 images in batches of 64, that is 32 GPUs with 2 images each.
iterations = 184375
interval = 7375  # four epochs; 1 / 25 of the iterations
train_cfg = dict(
    _delete_=True, type="IterBasedTrainLoop", max_iters=iterations, val_interval=interval
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, end=250),
    # After 88.9 % and 96.3 % of the iterations.
    dict(type="MultiStepLR", by_epoch=False, milestones=[163889, 177546], gamma=0.1),
]
optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    constructor="LayerDecayConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        layer_decay=0.7,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0)),
    ),
)
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook", by_epoch=False, interval=interval))
log_processor = dict(by_epoch=False)
